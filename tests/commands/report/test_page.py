"""The whole page: every section, nothing loaded from elsewhere, no text that becomes markup."""

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest
import torch
import yaml

from dsonas.commands.report import ReportError, write_report
from dsonas.commands.report.collect import read_run
from dsonas.commands.report.examine import examine
from dsonas.commands.report.page import MAX_BYTES
from dsonas.run.runs import RunError, RunFolder
from helpers.run_folders import make_data

SECTIONS = ("found", "how", "quality", "cost", "reproduce")
HOSTILE = ("<script>alert(1)</script>", '" onload="alert(2)', "a\x00b & 'c'", "{{ 7 * 7 }}")


class Page(HTMLParser):
    """Elements and text of a page, checking that what is opened is closed."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = self.title = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open[-1:] == ["title"]:
            self.title = data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def read(path: Path) -> str:
    return path.read_text()


def test_every_section_is_there_and_every_picture_is_well_formed(make_run, data):
    run = make_run()
    path = write_report([run], data=data)
    assert path == run / "report.html"
    text, page = read(path), Page(read(path))
    ids = [attributes.get("id") for _, attributes in page.elements]
    assert all(f"run-1-{name}" in ids for name in SECTIONS)
    pictures = re.findall(r"<svg.*?</svg>", text, re.S)
    assert len(pictures) >= 10  # logo, strip, a block, six charts and the factors
    for picture in pictures:
        fromstring(picture)
    for word in (
        "Block A",
        "Scaling factors",
        "Confusion matrix",
        "Live connections",
        "dsonas run",
    ):
        assert word in page.text
    # the curve may rise: the log counts what has a factor above 0, not what is not removed
    assert "one at 0 that is not removed yet may come back" in page.text
    assert "has not removed" not in page.text
    assert "12.50\N{NO-BREAK SPACE}% test error on no_such_images" in page.text


def test_the_page_loads_nothing(make_run, data):
    text = read(write_report([make_run()], data=data))
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"url\(|@import|//[a-z]", text)
    for tag, attributes in Page(text).elements:
        for name in ("src", "href", "data", "srcset", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert len(text.encode()) < MAX_BYTES


def test_only_our_own_script_may_run(make_run, data):
    text = read(write_report([make_run()], data=data))
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'")


def test_hostile_names_stay_text(make_run):
    run = make_run(name="<script>alert(0)<b>", class_names=HOSTILE)
    config = run / "config.yaml"
    config.write_text(config.read_text() + "note: '</pre><script>alert(3)</script>'\n")
    page = Page(read(write_report([run], data=make_data(HOSTILE))))
    assert len(page.all("script")) == 1
    assert all(set(a) <= {"class", "style", "data-tip"} for a in page.all("b"))
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert HOSTILE[0] in page.text
    assert HOSTILE[3] in page.text
    assert "alert(3)" in page.text
    assert "\x00" not in page.text


def test_the_numbers_of_the_examination(make_run, data):
    run = make_run()
    found = examine(RunFolder(run), {}, data)
    network, *_ = RunFolder(run).load_network()
    pixels = data.test.gather(torch.arange(30)).float() / 255
    wrong = (network((pixels - 0.5) / 0.25).argmax(1) != data.test.labels).sum()
    assert found.num_images == 30
    assert len(found.mistakes) == wrong > 0
    assert sum(count for *_, count in found.confusions) == wrong
    assert [sum(row) for row in found.confusion] == [10, 10, 10]
    assert 0 < sum(bool(mistake.picture) for mistake in found.mistakes) <= 24
    assert all(mistake.label != mistake.predicted for mistake in found.mistakes)
    sure = [mistake.probability for mistake in found.mistakes]
    assert sure == sorted(sure, reverse=True)
    text = read(write_report([run], data=data))
    assert f"{wrong} of 30 images" in text
    assert "it was 12.50 % when the run ended" in text  # what the made-up metrics say


def test_what_was_measured_is_kept_when_the_images_are_gone(make_run, data):
    run = make_run()
    write_report([run], data=data)
    stored = json.loads((run / "evaluation.json").read_text())
    assert stored["test_error"] == pytest.approx(100 * len(stored["mistakes"]) / 30)
    assert [row["images"] for row in stored["classes"]] == [10, 10, 10]
    before = read(run / "report.html")
    assert "Confusion matrix" in before
    write_report([run])  # the images of this run are nowhere
    assert read(run / "report.html") == before


def test_what_was_measured_with_another_network_is_not_used(make_run, data):
    run, other = make_run(), make_run("other", blocks=(1, 1))
    write_report([other], data=data)
    for text in ((other / "evaluation.json").read_text(), "{", '{"network": 3}', "[]"):
        (run / "evaluation.json").write_text(text)
        assert "cannot be run on its test images" in read(write_report([run], run / "new.html"))
    found = examine(RunFolder(run), {}, data)
    assert examine(RunFolder(run), {}) == found


def test_a_report_is_never_replaced_by_one_with_less(make_run, data, tmp_path):
    run = make_run()
    write_report([run], data=data)
    (run / "evaluation.json").unlink()  # as with a run made before there was one
    before = read(run / "report.html")
    with pytest.raises(ReportError, match=r"report.html is kept.*error by class.*no_such_images.*"
                                          r"choose another file with --out"):  # fmt: skip
        write_report([run])
    with pytest.raises(ReportError, match="not looked at, as asked for"):
        write_report([run], examines=False)
    assert read(run / "report.html") == before
    (run / "log.csv").unlink()
    with pytest.raises(ReportError, match=r"\(loss\)"):
        write_report([run], data=data)
    assert write_report([run], tmp_path / "less.html", examines=False).exists()


def test_a_folder_that_cannot_be_written_is_reported_elsewhere(make_run, data, tmp_path):
    run = make_run()
    (run / "evaluation.json").mkdir()
    assert "Confusion matrix" in read(write_report([run], tmp_path / "page.html", data=data))


def test_bars_of_classes_are_not_relative_to_the_worst(make_run):
    names = tuple(f"c{i:02}" for i in range(40))
    run = make_run(class_names=names)
    page = read(write_report([run], data=make_data(names, 80)))
    rows = re.findall(
        r'<i style="width:([\d.]+)%"></i></span></td><td class="figure">([\d.]+) %', page
    )
    full = float(re.findall(r"a full bar is (\d+) %", page)[0])
    assert len(rows) == 20
    assert "the worst 20 of 40" in page
    assert all(
        float(width) == pytest.approx(100 * float(error) / full, abs=1) for width, error in rows
    )


def test_wrong_images_are_told_with_their_files(make_run, tmp_path):
    from PIL import Image

    for i in range(30):
        file = tmp_path / "photos" / ("cat", "dog", "owl")[i % 3] / f"photo {i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 8 * i).save(file)
    run = make_run()
    settings = {"name": f"folder:{tmp_path / 'photos'}", "image_size": 8, "test": 0.5}
    found = examine(RunFolder(run), {"data": settings})
    assert found.mistakes
    for mistake in found.mistakes:
        folder, name = mistake.file.split("/")
        assert folder == found.class_names[mistake.label]
        assert (tmp_path / "photos" / folder / name).is_file()
    page = Page(read(write_report([run])))
    assert page.all("em")[0]["title"] == found.mistakes[0].file


def test_without_its_images_the_page_says_why(make_run):
    page = Page(read(write_report([make_run()])))
    assert "cannot be run on its test images here: image folder no_such_images" in page.text
    assert "Confusion matrix" not in page.text
    assert "Block A" in page.text
    skipped = Page(read(write_report([make_run("other")], examines=False)))
    assert "not looked at, as asked for" in skipped.text


@pytest.mark.parametrize(
    "name", ["metrics.json", "log.csv", "architecture.json", "factors.csv", "network.safetensors"]
)
def test_missing_and_damaged_files(make_run, data, name):
    run = make_run()
    (run / name).unlink()
    page = Page(read(write_report([run], data=data)))
    assert all(f"run-1-{section}" in str(page.elements) for section in SECTIONS)
    (run / name).write_text('{"format": 1, "macs": "many"}\nstage,epoch\ntrain,x\n')
    damaged = Page(read(write_report([run], data=data)))
    assert f"{name} cannot be read" in damaged.text or (
        name == "network.safetensors" and "damaged" in damaged.text
    )


@pytest.mark.parametrize("value", [None, 5, "macs", [1]])
@pytest.mark.parametrize("group", ["data", "network", "search", "budget", "train"])
def test_a_damaged_configuration(make_run, group, value):
    run = make_run()
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, group: value}))
    page = Page(read(write_report([run], examines=False)))
    assert all(f"run-1-{section}" in str(page.elements) for section in SECTIONS)


def test_a_run_that_has_only_begun(make_run):
    run = make_run()
    for name in ("metrics.json", "log.csv", "architecture.json", "network.safetensors"):
        (run / name).unlink()
    page = Page(read(write_report([run])))
    assert "only just begun" in page.text
    assert "the search has not ended" in page.text


def test_an_unfinished_search_says_how_far_it_is(make_run):
    run = make_run()
    for name in ("metrics.json", "architecture.json", "network.safetensors"):
        (run / name).unlink()
    lines = (run / "log.csv").read_text().splitlines()
    (run / "log.csv").write_text("\n".join(lines[:6]) + "\n")
    title = Page(read(write_report([run]))).title
    assert title == "A search on no_such_images, not finished: search epoch 2 of 3 · dsonas"
    assert "Live connections" in read(write_report([run]))


def test_factors_that_ended_at_0_have_their_last_value(make_run):
    run = make_run()
    record = read_run(run)
    ends = [epoch[0] for epoch in record.history]
    assert record.factors(0) == ends[-1]
    line = (run / "factors.csv").read_text().splitlines()[-1]
    text = (run / "factors.csv").read_text().removesuffix(f"{line}\n")
    (run / "factors.csv").write_text(text)  # as if it had become 0 in the last epoch
    assert read_run(run).factors(0) == ends[-1]
    assert read_run(run).history[-1][0] != ends[-1]


def test_not_a_run(tmp_path):
    with pytest.raises(RunError, match="has no readable config"):
        write_report([tmp_path / "nothing"])
    (tmp_path / "config.yaml").write_text("{ no yaml")
    with pytest.raises(RunError, match="has no readable config"):
        write_report([tmp_path])


def test_several_runs_are_compared(make_run, data, tmp_path):
    runs = [make_run("one"), make_run("two", shared=False), make_run("three")]
    (runs[2] / "metrics.json").unlink()
    out = tmp_path / "all.html"
    assert write_report(runs, out, data=data) == out
    page = Page(read(out))
    assert "3 runs compared" in page.text
    assert "Error against cost" in page.text
    assert "not finished" in page.text
    for i in (1, 2, 3):
        assert f"run-{i}-found" in str(page.elements)
        assert page.all("a").count({"href": f"#run-{i}"}) == 2
    dots = [a for a in page.all("g") if a.get("class") == "dot"]
    assert {str(a["data-tip"]).splitlines()[0] for a in dots} == {"one", "two"}
    ids = [a["id"] for _, a in page.elements if a.get("id")]
    assert len(ids) == len(set(ids))


def test_runs_of_one_name_are_told_apart(make_run, data, tmp_path):
    runs = [make_run("a/run"), make_run("b/run")]
    page = Page(read(write_report(runs, tmp_path / "x.html", examines=False)))
    assert "a/run" in page.text
    assert "b/run" in page.text


def test_the_networks_of_a_study_are_shown_beside_the_run(make_run, data):
    run = make_run()
    found = (("searched", 5e5, 3.0), ("random", 498e3, 5.0), ("random_search", 5e5, 6.0))
    networks = [dict(zip(("method", "macs", "test_error"), one, strict=True)) for one in found]
    (run / "compare.json").write_text(json.dumps({"networks": networks}))
    page = Page(read(write_report([run], data=data)))
    tips = [str(a["data-tip"]) for a in page.all("g") if a.get("class") == "dot"]
    names = sorted(tip.splitlines()[0] for tip in tips)
    assert names == ["random", "random search", "run", "searched"]
    assert "random\n498 k multiply-adds, 5 %" in tips


def test_a_study_among_runs_is_no_run_that_is_not_finished(make_run, tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    (study / "config.yaml").write_text("data: {name: digits}\n")
    networks = [{"method": "random", "macs": 5e5, "test_error": error} for error in (5.0, 6.0)]
    (study / "compare.json").write_text(json.dumps({"networks": networks}))
    page = Page(read(write_report([make_run(), study], tmp_path / "x.html", examines=False)))
    row = page.text[page.text.index("Key figures") : page.text.index("over the epochs")]
    assert "2 networks" in row
    assert "not finished" not in row


@pytest.mark.parametrize("shared", [True, False])
def test_large_runs_stay_below_the_limit(make_run, shared):
    operations = ("separable_conv3x3", "separable_conv5x5", "max_pool3x3", "average_pool3x3")
    classes = tuple(f"class number {i}" for i in range(100))
    run = make_run(class_names=classes, operations=operations, num_levels=4, blocks=(4, 10, 10),
                   shared=shared, epochs=40)  # fmt: skip
    data = make_data(classes, 400)
    text = read(write_report([run], data=data))
    assert len(text.encode()) < MAX_BYTES
    assert len(Page(text).all("svg")) > (6 if shared else 20)


@pytest.mark.parametrize(("limit", "whole"), [(400_000, True), (50_000, False)])
def test_many_runs_show_less_of_each(make_run, tmp_path, monkeypatch, limit, whole):
    monkeypatch.setattr("dsonas.commands.report.page.MAX_BYTES", limit)
    run = make_run(num_levels=4, blocks=(1, 1), epochs=100)
    path = write_report([run] * 5, tmp_path / "many.html", examines=False)
    assert path.stat().st_size < limit
    assert ("run-1-found" in read(path)) == whole
    assert "5 runs compared" in read(path)


def test_without_jinja_one_line_says_what_to_install(make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ReportError, match=r'pip install "dsonas\[report\]"'):
        write_report([make_run()], examines=False)
