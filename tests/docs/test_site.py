"""The site builds without a warning, shows every page, and loads nothing from elsewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.pages import PAGES, ROOT

pytestmark = pytest.mark.slow

ADDRESS = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=[\"']?(https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_there(site: Path):
    names = {"index" if page.name == "README.md" else page.stem for page in PAGES}
    assert {page.stem for page in site.rglob("*.html")} - {"404"} >= names


def test_the_api_page_holds_the_docstrings(site: Path):
    text = (site / "api.html").read_text(encoding="utf-8")
    assert "Pretrain a supernet and search it" in text
    assert 'id="dsonas.prune_model"' in text


def test_formulas_are_mathml(site: Path):
    text = (site / "method.html").read_text(encoding="utf-8")
    assert "<math" in text
    assert "arithmatex" not in text
    assert r"\lambda" not in re.sub(r"<code>.*?</code>", "", text, flags=re.DOTALL)


def test_files_outside_of_the_pages_come_along(site: Path):
    assert (site / "benchmarks" / "results" / "budget-accuracy.json").is_file()
    assert (site / "images" / "idea.svg").is_file()


def test_nothing_is_loaded_from_elsewhere(site: Path):
    for page in site.rglob("*.html"):
        loaded = [
            tag for tag in re.findall(r"<[^>]+>", page.read_text(encoding="utf-8"))
            if ADDRESS.match(tag) and 'rel="canonical"' not in tag
        ]  # fmt: skip
        assert loaded == [], page.name
