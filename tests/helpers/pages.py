"""The pages of the documentation, their blocks of code, and the commands that they name."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:[ ]*<!-- not run: (?P<reason>[^\n]+) -->\n+)?"
    r"(?P<indent>[ ]*)```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)
INDENTED = re.compile(r"^(?: {4}[^\n]*(?:\n|\Z))+", re.MULTILINE)  # commands stand so, too
SHELL = ("bash", "sh", "console")


class Block(NamedTuple):
    """A fenced block.

    Args:
        language: the word behind the fence.
        code: what stands in it, without indentation.
        line: where it starts in its page, from 1.
        reason: why it is not run; None if it is.
    """

    language: str
    code: str
    line: int
    reason: str | None


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in some languages."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(
            match["language"],
            textwrap.dedent(match["code"]),
            text.count("\n", 0, match.start("code")) + 1,
            match["reason"],
        )
        for match in BLOCK.finditer(text)
    ]
    return [block for block in found if block.language in languages]


def shell_lines(text: str) -> list[str]:
    """Its commands, one a line: continued lines joined, comments and blank lines left out."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = (line.strip().removeprefix("$ ") for line in joined.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def commands(page: Path) -> list[str]:
    """Every line of a page that is a command: in fenced shell blocks, or indented by four."""
    text = page.read_text(encoding="utf-8")
    fenced = [line for block in blocks(page, *SHELL) for line in shell_lines(block.code)]
    rest = BLOCK.sub("", text)
    indented = [line for found in INDENTED.findall(rest) for line in shell_lines(found)]
    return fenced + indented


def arguments(line: str, program: str) -> list[str] | None:
    """What a command line hands to a program; None if it does not call it."""
    try:
        words = shlex.split(re.split(r"\s(?:>|\||&&|;|&$)", line)[0], comments=True)
    except ValueError:  # a quote in a sentence
        return None
    for i, word in enumerate(words):
        if word == program or word.endswith(f"/{program}"):
            return words[i + 1 :] if _is_called(words[:i]) else None
    return None


def _is_called(before: list[str]) -> bool:
    """Whether a program stands where a command does: first, or behind a setting or starter."""
    starters = ("python", "python3", "torchrun", "srun", "exec", "time", "env", "-m")
    return all("=" in word or word.startswith("-") or word in starters for word in before[:1])
