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

from dsonas.commands.report import ReportError, write_report
from dsonas.commands.report.collect import read_run
from dsonas.commands.report.examine import examine
from dsonas.commands.report.page import MAX_BYTES
from dsonas.commands.report.wording import headline
from dsonas.run.runs import RunError, RunFolder
from dsonas.train.checkpoints import CheckpointFolder
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
        self.text = ""
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
    assert len(pictures) >= 10  # logo, strip, a block, six charts and the factors, confusions
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
    assert not page.all("b") or all(not a for a in page.all("b"))
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert HOSTILE[0] in page.text
    assert HOSTILE[3] in page.text
    assert "alert(3)" in page.text
    assert "\x00" not in page.text


def test_the_numbers_of_the_examination(make_run, data):
    run = make_run()
    found = examine(RunFolder(run), {}, data)
    network, _ = RunFolder(run).load_network()
    pixels = data.test.gather(torch.arange(30)).float() / 255
    wrong = (network((pixels - 0.5) / 0.25).argmax(1) != data.test.labels).sum()
    assert found.num_images == 30
    assert found.num_wrong == wrong > 0
    assert sum(count for *_, count in found.confusions) == wrong
    assert [sum(row) for row in found.counts] == [10, 10, 10]
    assert 0 < len(found.mistakes) <= min(24, int(wrong))
    for mistake in found.mistakes:
        assert mistake.label != mistake.predicted
        assert mistake.probability >= mistake.true_probability
    sure = [mistake.probability for mistake in found.mistakes]
    assert sure == sorted(sure, reverse=True)
    text = read(write_report([run], data=data))
    assert f"{wrong} of 30 images" in text
    assert "it was 12.50 % when the run ended" in text  # what the made-up metrics say


def test_without_its_images_the_page_says_why(make_run):
    page = Page(read(write_report([make_run()])))
    assert "cannot be run on its test images here: image folder no_such_images" in page.text
    assert "Confusion matrix" not in page.text
    assert "Block A" in page.text
    skipped = Page(read(write_report([make_run()], examines=False)))
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
    assert headline(read_run(run)).endswith("not finished: search epoch 2 of 3")
    assert "Live connections" in read(write_report([run]))


def test_factors_come_from_the_checkpoint_of_an_older_run(make_run):
    run = make_run()
    factors = read_run(run).factors
    assert factors
    (run / "factors.csv").unlink()
    assert read_run(run).factors is None
    CheckpointFolder(run / "checkpoints" / "train").save({"extras": {"factors": factors}})
    record = read_run(run)
    assert record.factors == factors
    text = read(write_report([run], examines=False))
    assert "λ = " in text
    assert "Scaling factors" not in text


def test_a_damaged_checkpoint_is_a_problem_not_an_end(make_run):
    run = make_run()
    (run / "factors.csv").unlink()
    folder = run / "checkpoints" / "train"
    folder.mkdir(parents=True)
    (folder / "checkpoint-00000001.pt").write_bytes(b"no checkpoint")
    assert "factors cannot be read" in read(write_report([run], examines=False))


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
    dots = [a for a in page.all("circle") if "data-tip" in a]
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
    budgets = [{"macs": 5e5, "searched": [3.0], "random": [5.0, 6.0], "p_value": 0.1}]
    (run / "compare.json").write_text(json.dumps({"budgets": budgets}))
    page = Page(read(write_report([run], data=data)))
    tips = [str(a["data-tip"]) for a in page.all("circle") if "data-tip" in a]
    assert sorted(tip.splitlines()[0] for tip in tips) == ["random", "random", "run", "searched"]
    assert "random\n500 k multiply-adds, 6 %" in tips


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
