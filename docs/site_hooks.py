"""What the site needs beyond the pages as they are: files outside of docs/, and formulas.

The pages are written to be read in the repository, where links such as ``../CONTRIBUTING.md`` and
``docs/cli.md`` are right. Here the README becomes the first page, whatever else a page links to is
taken into the site, links are adapted, and LaTeX becomes MathML, which browsers show by themselves.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from posixpath import relpath

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
FIRST_PAGE = "README.md"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the README as the first page, and every file outside of docs/ that a page links to."""
    _add(files, config, ROOT / FIRST_PAGE)
    waiting = [file.abs_src_path for file in files.documentation_pages()]
    while waiting:
        page = Path(waiting.pop() or "")
        for _, target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            if path.is_file() and _address(path) not in files.src_uris:
                _add(files, config, path)
                waiting += [str(path)] if path.suffix == ".md" else []
    return files


def _add(files: Files, config: MkDocsConfig, path: Path) -> None:
    files.append(File.generated(config, _address(path), abs_src_path=str(path)))


def _address(path: Path) -> str:
    """Where a file of the repository stands in the site."""
    if path == ROOT / FIRST_PAGE:
        return "index.md"
    docs = ROOT / "docs"
    return path.relative_to(docs if path.is_relative_to(docs) else ROOT).as_posix()


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make the links of a page, right in the repository, right in the site."""
    here = Path(page.file.abs_src_path or "").parent
    folder = Path(page.file.src_uri).parent.as_posix()

    def adapted(link: re.Match[str]) -> str:
        path = (here / link[2]).resolve()
        if not path.is_file() or not path.is_relative_to(ROOT):
            return link[0]
        return f"{link[1]}{relpath(_address(path), folder)}{link[3]}"

    return LINK.sub(adapted, markdown)


def on_page_content(content: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        return convert(html.unescape(found[2]), display=display)

    return FORMULA.sub(formula, content)
