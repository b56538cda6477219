# SPDX-License-Identifier: Apache-2.0
"""Builds the wheel, byte for byte the same from the same files; run by Bazel."""

import argparse
import base64
import hashlib
import re
import struct
import zipfile
from pathlib import Path

NAME = "oneshot"
# "oneshot" is somebody else's on the package index.
DISTRIBUTION = "oneshot-xla"

# JAX is no requirement but of extras: a JAX that is there must not be replaced beside its plugins.
METADATA = """\
Metadata-Version: 2.4
Name: {name}
Version: {version}
Summary: Fused single-shot all-reduce for unmodified JAX programs
License-Expression: Apache-2.0
{licenses}Classifier: Operating System :: POSIX :: Linux
Classifier: Programming Language :: Python :: 3
Requires-Python: >=3.12
Provides-Extra: cuda12
Requires-Dist: jax[cuda12]>=0.11.2; extra == "cuda12"
Provides-Extra: cuda13
Requires-Dist: jax[cuda13]>=0.11.2; extra == "cuda13"
Description-Content-Type: text/markdown

{readme}"""

WHEEL = """\
Wheel-Version: 1.0
Generator: {name} build_wheel.py
Root-Is-Purelib: false
Tag: {tag}
"""

# JAX imports every module that the first group names, and calls its initialize().
ENTRY_POINTS = """\
[jax_plugins]
oneshot = oneshot.jax_plugin

[console_scripts]
oneshot = oneshot.__main__:main
"""


_DT_NULL, _DT_RUNPATH = 0, 29
_PT_DYNAMIC = 2


def without_runpath(library: bytes) -> bytes:
    """Takes out DT_RUNPATH, where Bazel has noted the place of XLA in its own tree."""
    data = bytearray(library)
    (segments,) = struct.unpack_from("<Q", data, 32)
    (count,) = struct.unpack_from("<H", data, 56)
    headers = [struct.unpack_from("<IIQQQQQQ", data, segments + 56 * i) for i in range(count)]
    ((_, _, offset, _, _, size, _, _),) = [h for h in headers if h[0] == _PT_DYNAMIC]
    entries = list(struct.iter_unpack("<QQ", data[offset : offset + size]))
    kept = [entry for entry in entries if entry[0] != _DT_RUNPATH]
    kept += [(_DT_NULL, 0)] * (len(entries) - len(kept))
    data[offset : offset + size] = b"".join(struct.pack("<QQ", *entry) for entry in kept)
    return bytes(data)


def outside(readme: str) -> str:
    """Takes links to files of the repository out of a Markdown text, and images."""
    readme = re.sub(r"!\[[^]]*\]\((?!\w+:)[^)]*\)\n*", "", readme)
    return re.sub(r"\[([^]]*)\]\((?!\w+:)[^)]*\)", r"\1", readme)


def contents(
    modules: list[Path], libraries: list[Path], readme: Path, licenses: list[Path], tag: str
) -> dict[str, bytes]:
    """Returns path and bytes of every file of the wheel, RECORD last."""
    # What is below the last folder with the package's name keeps its place.
    files = {f"{NAME}{str(path).rpartition(f'/{NAME}')[2]}": path.read_bytes() for path in modules}
    match = re.search(rb'__version__ = "(.+)"', files[f"{NAME}/version.py"])
    assert match, "version.py has no version"
    version = match[1].decode()
    files |= {f"{NAME}/lib/{path.name}": without_runpath(path.read_bytes()) for path in libraries}
    info = f"{DISTRIBUTION.replace('-', '_')}-{version}.dist-info"
    files |= {f"{info}/licenses/{path.name}": path.read_bytes() for path in licenses}
    files[f"{info}/METADATA"] = METADATA.format(
        name=DISTRIBUTION,
        version=version,
        licenses="".join(f"License-File: {path.name}\n" for path in licenses),
        readme=outside(readme.read_text()),
    ).encode()
    files[f"{info}/WHEEL"] = WHEEL.format(name=DISTRIBUTION, tag=tag).encode()
    files[f"{info}/entry_points.txt"] = ENTRY_POINTS.encode()
    record = ""
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(data)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    return files


def main() -> None:
    """Writes the wheel and the same files unpacked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, required=True, help="name-version-tag.whl")
    parser.add_argument("--site", type=Path, required=True, help="directory for the files")
    parser.add_argument("--modules", type=Path, nargs="+", required=True)
    parser.add_argument("--libraries", type=Path, nargs="+", required=True)
    parser.add_argument("--readme", type=Path, required=True)
    parser.add_argument("--licenses", type=Path, nargs="+", required=True)
    arguments = parser.parse_args()

    tag = arguments.wheel.stem.split("-", 2)[2]
    files = contents(
        arguments.modules, arguments.libraries, arguments.readme, arguments.licenses, tag
    )
    with zipfile.ZipFile(arguments.wheel, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path)  # of 1980: no time of day gets in
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, data)
    for path, data in files.items():
        target = arguments.site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


if __name__ == "__main__":
    main()
