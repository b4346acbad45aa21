"""Short help: one screen, grouped, with units, at once, and never stale; and the complete help."""

import re
import time

import pytest

from dsonas.commands.cli import COMMANDS
from dsonas.commands.short_help import SECTIONS, asked_help, short_help

LINES, COLUMNS = 40, 80
SHORT = [command for command in COMMANDS if short_help(command, ["--help"])]
UNITS = re.compile(
    r"pixels|share|epochs|images|multiply-adds|parameters|milliseconds|threads|levels|stage|rate"
    r"|operations|GB/s|devices|classes|seconds|networks|bytes|searches|trainings|architectures|jobs|side|rounds|sets"
)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


def options(text: str) -> dict[str, tuple[str, str]]:
    """Placeholder and text of each option of a help."""
    found = {}
    for part in re.split(r"\n(?=  -)|\n(?=\S)", text):
        if entry := re.match(r"  (?:-\w, )?(--[\w.-]+)(?: ([^\s,]+))?[\s,]+(.*)", part, re.DOTALL):
            found[entry[1]] = (entry[2] or "", " ".join(entry[3].split()))
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen(dsonas, command):
    ended = dsonas(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].startswith(f"usage: dsonas {command} ")
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= (COLUMNS if command in SHORT else 100)


@pytest.mark.parametrize("command", SHORT)
def test_short_help_agrees_with_the_parser(dsonas, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    short, full = (options(dsonas(command, option).out) for option in ("--help", "--help-all"))
    assert len(short) > 1
    for flag, (placeholder, text) in short.items():
        if flag == "--help":
            assert placeholder == "SECTION"
            continue
        if flag == "--help-all":
            continue
        assert flag in full
        assert placeholder == full[flag][0], flag
        shown = re.search(r"\[(\S.*)\]$", text)
        default = re.search(r"\(default (\[.*?\]|[^ )]+)\)", full[flag][1])
        if default and shown and flag != "--out":
            assert shown[1] == default[1].replace("[]", "none"), flag
        if default and re.fullmatch(r"[\d.e-]+", default[1]):
            assert shown, f"{flag} has a default"
        if placeholder in ("N", "X", "K", "PIXELS") and flag != "--seed":
            assert UNITS.search(text), f"{flag}: no unit"


@pytest.mark.parametrize("command", [name for name in SHORT if name not in SECTIONS])
def test_short_help_without_sections_is_complete(dsonas, command):
    short, full = (options(dsonas(command, option).out) for option in ("--help", "--help-all"))
    assert {*short} == {*full} - {"--help"}


@pytest.mark.parametrize("command", SECTIONS)
def test_every_section_can_be_asked_for(dsonas, command):
    full = dsonas(command, "--help-all").out
    assert tuple(re.findall(r"^(\w+) \(.*\):$", full, re.MULTILINE)) == SECTIONS[command]
    for section in SECTIONS[command]:
        part = dsonas(command, "--help", section).out
        assert part in f"{full}\n"
        assert part.startswith(f"{section} (")
        assert all(flag.startswith(f"--{section}.") for flag in options(part))
        assert len(part.splitlines()) > 1


def test_an_unknown_section_is_refused(dsonas):
    ended = dsonas("run", "--help", "serach")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "data, network" in ended.err
    assert "'serach'" in ended.err


def test_help_wins_over_other_options(dsonas):
    expected = dsonas("run", "--help")
    assert dsonas("run", "--config", "nonsense", "-h", "--seed", "1") == expected
    assert dsonas("predict", "--help", "image.png") == dsonas("predict", "-h")
    assert asked_help(["--out", "x"]) is None
    assert asked_help([]) is None


def test_help_of_a_command_is_quick(start):
    def seconds() -> float:
        began = time.perf_counter()
        process = start("run", "--help")
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert "--search.epochs" in out
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.7  # the machine may be busy
