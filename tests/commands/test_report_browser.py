"""A report in a real browser: it opens without an error, and what can be clicked works."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from dsonas.commands.report import write_report
from helpers.browser import Browser, chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as page:
        page.resize(1280, 900)
        yield page


def shown(browser: Browser, selector: str) -> bool:
    """Whether an element takes any room."""
    return browser.run(f"!!document.querySelector({selector!r}).getClientRects().length")


def count(browser: Browser, selector: str) -> int:
    return browser.run(f"document.querySelectorAll({selector!r}).length")


def test_it_opens_without_errors_and_loads_nothing(browser, finished):
    browser.open(finished / "report.html")
    assert browser.problems == []
    assert "test error on digits" in browser.run("document.querySelector('h1').textContent")
    assert browser.run("document.querySelector('.part').getBoundingClientRect().width") > 20
    assert browser.run("[...document.images].every(image => image.naturalWidth)")


def test_the_switch_shows_and_hides_what_was_removed(browser, finished):
    browser.open(finished / "report.html")
    box = "document.querySelector('svg.block').getAttribute('viewBox')"
    before = browser.run(box)
    assert shown(browser, ".edge")
    assert not shown(browser, ".dead .line")
    browser.click(".switch i")
    assert shown(browser, ".dead .line")
    assert shown(browser, ".ghost")
    assert browser.run(box) == browser.run("document.querySelector('svg.block').dataset.full")
    browser.click(".switch i")
    assert not shown(browser, ".dead .line")
    assert browser.run(box) == before
    assert browser.problems == []


def test_pointing_at_an_operation_marks_its_lines(browser, finished):
    browser.open(finished / "report.html")
    assert count(browser, ".on") == 0
    browser.move(".nodes .node:not(.end)")
    node = browser.run("document.querySelector('.nodes .node:not(.end)').dataset.n")
    touching = count(browser, f".edge[data-s='{node}'], .edge[data-t='{node}']")
    assert count(browser, ".edge.on") == touching > 0
    assert "reads input" in browser.run("document.querySelector('.tip').textContent")
    assert shown(browser, ".tip")
    browser.move("h1")
    assert not shown(browser, ".tip")
    assert count(browser, "svg.focus") == 0
    assert browser.problems == []


def test_pointing_at_a_curve_tells_its_values(browser, finished):
    browser.open(finished / "report.html")
    browser.move(".chart[data-values]")
    text = browser.run("document.querySelector('.tip').textContent")
    assert text.startswith("epoch ")
    assert "training: " in text
    assert browser.problems == []


def test_light_and_dark(browser, finished):
    background = "getComputedStyle(document.body).backgroundColor"
    browser.resize(1280, 900, dark=True)
    browser.open(finished / "report.html")
    dark = browser.run(background)
    browser.click(".theme")
    light = browser.run(background)
    browser.resize(1280, 900)
    browser.open(finished / "report.html")
    assert browser.run(background) == light != dark
    browser.click(".theme")
    assert browser.run(background) == dark


@pytest.mark.parametrize("width", [390, 820, 1600])
def test_the_page_is_never_wider_than_the_screen(browser, finished, width, tmp_path):
    file = write_report([finished, finished], Path(tmp_path) / "two.html")
    browser.resize(width, 850)
    browser.open(file)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.problems == []
    browser.resize(1280, 900)


def measured(finished: Path, place: Path, names: list[str], confusion: list[list[int]]) -> Path:
    """The report of a run that has been measured with other classes."""
    run = shutil.copytree(finished, place / "run")
    key = hashlib.sha256((run / "network.safetensors").read_bytes()).hexdigest()
    pixel = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    mistakes = [
        {"label": i, "predicted": j, "probability": 0.7, "picture": pixel, "side": 1,
         "file": f"{names[i]}/{'deep/' * 9}number {k} of {names[i]}.png"}
        for i, row in enumerate(confusion) for j, count in enumerate(row) if i != j
        for k in range(count)
    ]  # fmt: skip
    found = {"class_names": names, "confusion": confusion, "mistakes": mistakes, "network": key}
    (run / "evaluation.json").write_text(json.dumps(found))
    return write_report([run], place / "report.html")


LONG = "Canis lupus familiaris, the domestic dog of many breeds"
INSIDE = """(() => {
    const card = document.querySelector('.confusion').closest('.scroll').getBoundingClientRect();
    return [...document.querySelectorAll('.confusion caption, .confusion th, .confusion span, '
        + '.confusion td')].every(part => {
        const box = part.getBoundingClientRect();
        return box.left >= card.left - 1 && box.right <= card.right + 1 && box.top >= card.top - 1
            && box.bottom <= card.bottom + 1;
    });
})()"""


@pytest.mark.parametrize("width", [390, 820, 1280])
@pytest.mark.parametrize(
    "names", [("cat", "dog"), (LONG, "cat"), (LONG, LONG + " too"), ("a", "b")]
)
def test_the_matrix_of_two_classes_is_whole(browser, finished, width, names, tmp_path):
    file = measured(finished, tmp_path, list(names), [[5, 12], [2, 6]])
    browser.resize(width, 900)
    browser.open(file)
    assert browser.run(INSIDE)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.problems == []
    browser.resize(1280, 900)


def test_bars_are_as_long_as_the_errors(browser, finished, tmp_path):
    browser.open(
        measured(finished, tmp_path, ["cat", "dog", "owl"], [[9, 1, 0], [2, 6, 0], [0, 0, 4]])
    )
    shares = browser.run(
        "[...document.querySelectorAll('.bars .meter')].map(bar => bar.firstElementChild"
        ".getBoundingClientRect().width / bar.getBoundingClientRect().width)"
    )
    assert shares == pytest.approx([0.25, 0.1, 0], abs=0.02)


def test_wrong_images_have_the_names_of_their_files(browser, finished, tmp_path):
    browser.open(measured(finished, tmp_path, ["cat", "dog"], [[9, 1], [2, 6]]))
    wrong = "[...document.querySelectorAll('.mistakes figure, .mistakes > *')]"
    names = browser.run(f"{wrong}.map(one => one.querySelector('em')?.textContent).filter(Boolean)")
    assert set(names) == {"number 0 of cat.png", "number 0 of dog.png", "number 1 of dog.png"}
    titles = browser.run("[...document.querySelectorAll('.mistakes [title]')].map(x => x.title)")
    assert f"cat/{'deep/' * 9}number 0 of cat.png" in titles
    boxes = (
        "[...document.querySelectorAll('.mistakes em')].map(x => x.getBoundingClientRect().height)"
    )
    assert all(height > 8 for height in browser.run(boxes))
