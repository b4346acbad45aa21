"""The page that says where to change what names files that exist."""

import re

import pytest

from helpers.pages import ROOT

PAGE = (ROOT / "docs" / "contributing" / "where.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:src|tests|examples|docs|benchmarks)/[\w./-]+\.\w+)`", PAGE)))
KINDS = (
    "A removal rule", "An operation", "A budget kind", "A data source", "A training recipe",
    "A task",
)  # fmt: skip


@pytest.mark.parametrize("path", NAMED)
def test_the_file_exists(path: str):
    assert (ROOT / path).is_file() or "NAME" in path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_change_names_files(kind: str):
    text = PAGE.split(f"\n## {kind}\n", 1)[1].split("\n## ", 1)[0]
    assert any(path in text for path in NAMED)


def test_names_in_files_are_there():
    """Such as ``PENALTIES`` in ``src/dsonas/search/penalties.py``."""
    sources = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py"))
    for name in set(re.findall(r"`([A-Z]{3,}(?:_[A-Z]+)*)`", PAGE)) - {"NAME", "CONTRIBUTING"}:
        assert re.search(rf"^{name}\b.*=", sources, re.MULTILINE), name
