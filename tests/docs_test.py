# SPDX-License-Identifier: Apache-2.0
"""What the documents say about messages, variables, commands and files is so."""

import re
import types
from pathlib import Path

import oneshot
import pytest
from oneshot import __main__ as command_line
from oneshot import config

ROOT = Path(__file__).parent.parent
DOCS = sorted(
    [*(ROOT / "docs").glob("**/*.md"), ROOT / "README.md", ROOT / "THIRD_PARTY_NOTICES.md"]
)


def sources() -> str:
    """All sources of the product, with the parts of split strings joined."""
    folders = [(ROOT / "cuda", "*.cc"), (ROOT / "xla_plugin", "*.cc"), (ROOT / "python", "*.py")]
    files = [path for folder, glob in folders for path in sorted(folder.rglob(glob))]
    texts = [path.read_text() for path in files if not path.stem.endswith("_test")]
    assert len(texts) > 20
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(texts))


def messages() -> list[str]:
    """The messages that the troubleshooting tables list in their first column."""
    text = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = re.findall(r"(?m)^\| (`.*?) \|", text)
    return [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]


def test_listed_messages_are_in_the_sources() -> None:
    found = sources()
    listed = messages()
    assert len(listed) > 60
    missing = [
        message
        for message in listed
        if not all(part in found for part in re.split(r"\s*…\s*", message) if part)
    ]
    assert not missing


# How the sources say why something is left alone.
REASONS = [
    ("xla_plugin/match", "*.cc", r'\*why = "([^"]+)"'),
    ("xla_plugin/match", "*.cc", r'GiveBack\([^"]+"([^"]+)"'),
    ("xla_plugin/match", "*.cc", r'return "([^"]+ [^"]+)"'),
    ("xla_plugin", "**/*.cc", r'Decline\{"([^"]+)"'),
    ("xla_plugin/pass", "profit.cc", r'return "([^"]+)"'),
    ("cuda/handlers", "gpu_probe.cc", r'return "([^"]+ [^"]+)"'),
]


@pytest.mark.parametrize(("folder", "files", "pattern"), REASONS)
def test_reasons_are_listed(folder: str, files: str, pattern: str) -> None:
    paths = [path for path in (ROOT / folder).glob(files) if not path.stem.endswith("_test")]
    sources = "\n".join(path.read_text() for path in paths)
    found = re.findall(pattern, sources)
    assert found
    text = "\n".join(messages())
    assert not [reason for reason in found if reason.strip() not in text]


def test_variables() -> None:
    text = (ROOT / "docs" / "environment.md").read_text()
    table = [f"| `{name}` | {meaning} |" for name, meaning in config.VARIABLES.items()]
    assert "\n".join(["|---|---|", *table, ""]) in text


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text())
    files = [link for link in links if not link.startswith("http")]
    assert not [link for link in files if not (path.parent / link).exists()]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in set(re.findall(r"python -m oneshot ([a-z-]+)", path.read_text())):
        with pytest.raises(SystemExit) as exit_code:
            command_line.main([command, "--help"])
        assert exit_code.value.code == 0, command
        assert f"oneshot {command}" in capsys.readouterr().out


def test_api_page_is_whole() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    functions = {
        name
        for name, value in vars(oneshot).items()
        if isinstance(value, types.FunctionType) and not name.startswith("_")
    }
    listed = set(re.findall(r"(?m)^\| `oneshot\.(\w+)", text)) - {"__version__"}
    assert listed == functions
    commands = set(
        re.findall(r"(?m)^    ([a-z][a-z-]+)(?:  |$)", command_line.parser().format_help())
    )
    assert len(commands) > 5
    assert set(re.findall(r"(?m)^\| `python -m oneshot ([a-z-]+)", text)) == commands
