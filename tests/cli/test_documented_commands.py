"""Every command in the documents parses with the real parser; every command of the parser is documented."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from roma_ds.cli.parser import build_parser, split_launcher_flags
from roma_ds.config import parse_run_config, preset_text

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("ds_configs/*.md")),
]
PRESETS = sorted(ROOT.glob("roma_ds/config/presets/*.yaml"))
END_OF_COMMAND = {">", ">>", "|", "||", "&&", ";", "&", "<"}
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)+=.*|(controls|deepspeed|output_dir)=.*")


def shell_lines(document: Path) -> Iterator[str]:
    """Lines of the bash blocks, continuations joined; in a preset, comment lines that show a command."""
    text = document.read_text()
    if document.suffix == ".yaml":
        yield from re.findall(r"^# +(roma-ds .*)$", text, re.MULTILINE)
        return
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


def commands(line: str) -> Iterator[list[str]]:
    """The simple commands of a line, as words; comments, redirections and assignments in front left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if word in END_OF_COMMAND:
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words and not skip:
                yield words
            skip = word in (">", ">>", "<")
            words = []
        else:
            words.append(word)


def documented(program: str) -> list[tuple[str, list[str]]]:
    return [
        (document.relative_to(ROOT).as_posix(), words)
        for document in [*DOCUMENTS, *PRESETS]
        for line in shell_lines(document)
        for words in commands(line)
        if words[0] == program
    ]


def known_commands() -> set[str]:
    actions = build_parser()._actions
    return {
        name
        for action in actions
        if isinstance(action, argparse._SubParsersAction)
        for name in action.choices
    }


def test_the_documents_hold_commands() -> None:
    assert len(documented("roma-ds")) >= 10
    assert {words[1] for _, words in documented("bash")} >= {"launch/quickstart.sh", "launch/test.sh"}


@pytest.mark.parametrize(
    ("where", "words"), documented("roma-ds"), ids=[" ".join(words) for _, words in documented("roma-ds")]
)
def test_it_parses(where: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        build_parser().parse_args(split_launcher_flags(words[1:])[0])
    except SystemExit as end:
        answer = capsys.readouterr()
        assert end.code in (0, None), f"{where}: {shlex.join(words)}\n{answer.err}"


@pytest.mark.parametrize("command", sorted(known_commands()))
def test_every_command_is_documented(command: str) -> None:
    for page in ("README.md", "docs/commands.md"):
        assert re.search(
            rf"roma-ds (\w+ )*{command}\b|^\| `{command}\b", (ROOT / page).read_text(), re.MULTILINE
        ), f"{page} does not mention `roma-ds {command}`"


def test_commands_named_in_running_text_exist() -> None:
    known = known_commands()
    for document in DOCUMENTS:
        for name in re.findall(r"`roma-ds ([a-z]\w*)", document.read_text()):
            assert name in known, f"{document.name} names `roma-ds {name}`"


def test_overrides_in_the_documents_are_valid() -> None:
    overrides = {word for _, words in documented("roma-ds") for word in words if OVERRIDE.fullmatch(word)}
    assert overrides
    for override in sorted(overrides):
        parse_run_config(preset_text("olmoe"), ROOT / "run.yaml", [override])


def test_scripts_in_the_documents_exist() -> None:
    for program in ("bash", "python"):
        for where, words in documented(program):
            if not words[1].startswith("-"):
                assert (ROOT / words[1]).exists(), f"{where}: {words[1]}"
    for where, words in documented("deepspeed"):
        script = next((word for word in words if word.endswith(".py")), None)
        assert script is None or (ROOT / script).exists(), f"{where}: {script}"


def test_a_wrong_command_would_be_seen() -> None:
    assert list(commands("A=1 roma-ds init olmoe > a.yaml && roma-ds run a.yaml # go")) == [
        ["roma-ds", "init", "olmoe"],
        ["roma-ds", "run", "a.yaml"],
    ]
    with pytest.raises(SystemExit):
        build_parser().parse_args(["no-such-command"])
