# SPDX-License-Identifier: Apache-2.0
"""Builds the wheel, byte for byte the same from the same files; run by Bazel."""

import argparse
import base64
import hashlib
import re
import zipfile
from pathlib import Path

NAME = "oneshot"

METADATA = """\
Metadata-Version: 2.1
Name: {name}
Version: {version}
Summary: Fused single-shot all-reduce for unmodified JAX programs
License: Apache-2.0
Requires-Python: >=3.12
Requires-Dist: jax>=0.11.2
Requires-Dist: jaxlib>=0.11.2
"""

WHEEL = """\
Wheel-Version: 1.0
Generator: {name} build_wheel.py
Root-Is-Purelib: false
Tag: {tag}
"""

# JAX imports every module that this group names, and calls its initialize().
ENTRY_POINTS = """\
[jax_plugins]
oneshot = oneshot.jax_plugin
"""


def contents(modules: list[Path], libraries: list[Path], tag: str) -> dict[str, bytes]:
    """Returns path and bytes of every file of the wheel, RECORD last."""
    # What is below the last folder with the package's name keeps its place.
    files = {f"{NAME}{str(path).rpartition(f'/{NAME}')[2]}": path.read_bytes() for path in modules}
    match = re.search(rb'__version__ = "(.+)"', files[f"{NAME}/version.py"])
    assert match, "version.py has no version"
    version = match[1].decode()
    files |= {f"{NAME}/lib/{path.name}": path.read_bytes() for path in libraries}
    info = f"{NAME}-{version}.dist-info"
    files[f"{info}/METADATA"] = METADATA.format(name=NAME, version=version).encode()
    files[f"{info}/WHEEL"] = WHEEL.format(name=NAME, tag=tag).encode()
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
    arguments = parser.parse_args()

    tag = arguments.wheel.stem.split("-", 2)[2]
    files = contents(arguments.modules, arguments.libraries, tag)
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
