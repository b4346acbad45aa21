"""Bad input: one line that names the option and the remedy, exit code 2, nothing left behind."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dsonas.cost.budgets import InfeasibleBudgetError
from dsonas.cost.costs import architecture_cost
from dsonas.graph.architecture import Architecture


def check_refused(ended, *fragments: str) -> None:
    """One line on stderr with all fragments, exit code 2."""
    assert ended.code == 2, ended
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("dsonas: error: ")
    for fragment in fragments:
        assert fragment in lines[0]


OPTIONS = {
    "unknown option": ("--data.nam digits", "unknown option --data.nam", "--data.name"),
    "unknown group": ("--bogus 1", "unknown option --bogus", "--help"),
    "group": ("--data digits", "data"),
    "stray": ("digits", "unexpected argument 'digits'"),
    "no value": ("--train.lr", "--train.lr: expected one argument"),
    "number": ("--train.lr abc", "train.lr must be a number > 0, got 'abc'"),
    "whole number": ("--train.epochs 1.5", "train.epochs must be a whole number > 0, got '1.5'"),
    "optional": ("--data.image_size x", "data.image_size must be a whole number >= 4 or null"),
    "choice": ("--data.color x", "data.color must be one of auto, grey, rgb"),
    "switch": ("--data.flip x", "data.flip must be true or false or null"),
    "list": ("--network.blocks 3", "network.blocks must be a list", "whole number"),
    "element": ("--network.blocks [1,x]", "network.blocks must be a list"),
    "seed type": ("--seed x", "seed must be a whole number"),
    "seed": ("--seed -1", "seed must be a whole number >= 0, got '-1'"),
    "data": ("--data.test 1", "data.test must be above 0 and below 1"),
    "data count": ("--data.max_train_images 0", "data.max_train_images must be"),
    "network": ("--network.levels 0", "network.levels must be a whole number > 0, got '0'"),
    "network list": ("--network.blocks [1,0]", "network.blocks must be a list", "> 0"),
    "network empty": ("--network.blocks []", "network.blocks must be numbers, one for each stage"),
    "operation": ("--network.operations [conv9x9]", "network.operations", "separable_conv3x3"),
    "stem": ("--network.stem x", "network.stem must be"),
    "pretrain": ("--pretrain.lr 0", "pretrain.lr must be a number > 0, got"),
    "search": ("--search.space half", "search.space must be one of", "full"),
    "search range": ("--search.keep_cost 2", "search.keep_cost"),
    "budget": ("--budget.macs 0", "budget.macs must be a positive number such as 1500000 or 1.5M"),
    "budget text": ("--budget.params many", "budget.params must be a positive number"),
    "train": ("--train.dropout 1", "train.dropout must be a number >= 0 and < 1"),
    "infinite": ("--train.lr .inf", "train.lr must be a number > 0, got '.inf'"),
    "not a number": ("--train.weight_decay .nan", "train.weight_decay must be"),
    "engine": ("--engine.threads 0", "engine.threads must be a whole number >= 1 and <= 1024"),
    "precision": ("--engine.precision float8", "engine.precision must be one of"),
    "device": ("--engine.device cuda:99", "engine.device 'cuda:99' cannot be used here"),
    "no device": ("--engine.device nonsense", "engine.device 'nonsense' cannot be used here"),
    "data name": ("--data.name mnist", "data.name must be one of digits"),
    "missing folder": ("--data.name folder:no/where", "no/where not found: give the path"),
    "recipe": ("--config nonsense", "--config must be a file or one of", "digits", "'nonsense'"),
    "file": ("--config no/file.yaml", "--config must be a file or one of", "no/file.yaml"),
    "grey": ("--data.color rgb", "digits is grey", "--data.color auto"),
    "too few": ("--data.max_train_images 5", "training images must be at least as many"),
    "no validation": ("--train.patience 3", "train.patience 3 needs a validation part", "data.val"),
    "no split": ("--data.factor_split 0.001", "data.factor_split 0.001 of 200 images"),
    "auxiliary head": ("--train.auxiliary 0.4", "--train.auxiliary 0"),
    "infeasible": ("--budget.macs 100", "cannot be met", "762 macs"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_is_refused(dsonas, tiny, tmp_path, case):
    arguments, *fragments = OPTIONS[case]
    out = tmp_path / "run"
    check_refused(dsonas("run", *tiny, "--out", out, *arguments.split()), *fragments)
    assert not out.exists()


FILES = {
    "unknown key": ("data: {nam: digits}", "unknown option data.nam: did you mean data.name?"),
    "unknown group": ("bogus: 3", "unknown option bogus"),
    "group of text": ("data: digits", "data must hold options"),
    "wrong type": ("train: {lr: abc}", "mine.yaml: train.lr must be a number > 0, got 'abc'"),
    "wrong choice": ("network: {stem: pad}", "mine.yaml: network.stem must be one of auto, "),
    "out of range": ("search: {rebuild_every: 0}", "search.rebuild_every"),
    "malformed": ("data: [1\n  x: {", "is not a YAML file"),
    "endless number": ("seed: 1" + 5000 * "0", "mine.yaml is not a YAML file"),
    "deep": (5000 * "[", "mine.yaml is not a YAML file"),
    "section twice": (
        "train: {lr: 1}\nseed: 1\ntrain: {epochs: 2}",
        "mine.yaml",
        "train stands in lines 1 and 3: give it once",
    ),
    "key twice": ("data: {name: digits}\ntrain:\n  lr: 1\n  lr: 2", "lr stands in lines 3 and 4"),
    "key twice in a line": ("train: {lr: 1, lr: 1}", "lr stands in lines 1 and 1"),
    "several bases": ("base: [digits]", "must be a file or one of", """got "['digits']\""""),
    "list": ("- 1", "must hold options"),
    "empty": ("", "must hold options"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_config_file_is_refused(dsonas, tmp_path, case):
    text, *fragments = FILES[case]
    file, out = tmp_path / "mine.yaml", tmp_path / "run"
    file.write_text(text)
    check_refused(dsonas("run", "--config", file, "--out", out), *fragments)
    assert not out.exists()


def test_a_binary_config_file_is_refused(dsonas, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    check_refused(dsonas("run", "--config", file), "mine.yaml is not a YAML file")


def test_an_unknown_command_is_refused(dsonas):
    check_refused(dsonas("serach"), "command must be one of check, run, search", "'serach'")


def test_arguments_and_places_of_data_are_named(dsonas, tmp_path):
    check_refused(dsonas("predict", "--run", tmp_path), "IMAGE", "is required")
    (tmp_path / "file.png").write_bytes(b"")
    check_refused(dsonas("check", tmp_path / "file.png"), "file.png", "is no folder")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["predict", "--run", "x", ""], "an argument"),
        (["predict", "--run", "", "x"], "--run"),
        (["evaluate", "--run", "x", "--data.test", ""], "--data.test"),
        (["train", "--architecture="], "--architecture"),
        (["check", ""], "an argument"),
        (["check", "x", "--data.labels="], "--data.labels"),
        (["run", "--out", ""], "--out"),
        (["run", "--network.blocks", ""], "--network.blocks"),
        (["run", "--import", ""], "--import"),
        (["shards", "x", ""], "an argument"),
    ],
)
def test_empty_words_are_refused(dsonas, tmp_path, monkeypatch, words, name):
    monkeypatch.chdir(tmp_path)
    check_refused(dsonas(*words), f"error: {name} must not be empty")


def test_an_empty_value_in_a_file_is_refused(dsonas, tmp_path):
    (tmp_path / "mine.yaml").write_text("out: ''\n")
    check_refused(dsonas("run", "--config", tmp_path / "mine.yaml"), "out must not be empty")


def test_check_is_told_one_folder(dsonas, tmp_path):
    ended = dsonas("check", tmp_path, "--data.name", "folder:other")
    check_refused(ended, "data.name must be left out", "folder:other")


def test_a_refusal_in_a_process_has_no_traceback(start):
    process = start("run", "--data.color", "rgb")
    out, err = process.communicate()
    assert (process.returncode, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_required_options_are_named(dsonas, command):
    ended = dsonas(command, *(["image.png"] if command == "predict" else []))
    check_refused(ended, "architecture" if command == "train" else "run", "is required")


def architecture_without(run: Path, key: str) -> str:
    value = json.loads((run / "architecture.json").read_text())
    del value[key]
    return json.dumps(value)


@pytest.mark.parametrize("kind", ["missing", "empty", "no JSON", "no blocks"])
def test_a_malformed_architecture_file_is_refused(dsonas, tiny, finished, tmp_path, kind):
    file, out = tmp_path / "net.json", tmp_path / "run"
    texts = {
        "empty": ("", "not a JSON file"),
        "no JSON": ("{", "not a JSON file"),
        "no blocks": (architecture_without(finished, "blocks"), "key 'blocks' is missing"),
    }
    text, fragment = texts.get(kind, ("", "does not exist"))
    if kind != "missing":
        file.write_text(text)
    check_refused(dsonas("train", *tiny, "--architecture", file, "--out", out), fragment)
    assert not out.exists()


def test_an_architecture_for_other_images_is_refused(dsonas, tiny, finished, tmp_path):
    size = ["--data.image_size", "12"]
    architecture = ["--architecture", finished / "architecture.json"]
    ended = dsonas("train", *tiny, *size, *architecture, "--out", tmp_path / "run")
    check_refused(ended, "images of 8 pixels", "data.image_size")


FOLDERS = {  # class folders, images in each, what the images are; the message
    "empty": ("", 0, b"", "has no class folders"),
    "no images": ("ab", 0, b"", "has 0 classes with images, needs 2"),
    "one class": ("a", 9, None, "has 1 classes with images, needs 2"),
    "all corrupt": ("ab", 9, b"nonsense", "images can be read"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_an_unsuitable_image_folder_is_refused(dsonas, tiny, tmp_path, case):
    names, each, content, fragment = FOLDERS[case]
    root, out = tmp_path / "images", tmp_path / "run"
    root.mkdir()
    for name in names:
        (root / name).mkdir()
        for i in range(each):
            path = root / name / f"{i}.png"
            if content is None:
                Image.fromarray(np.full((9, 9), 20 * i, np.uint8)).save(path)
            else:
                path.write_bytes(content)
    ended = dsonas("run", *tiny, "--data.name", f"folder:{root}", "--out", out)
    assert ended.code == 2
    assert fragment in ended.err.splitlines()[-1]
    assert "Traceback" not in ended.err
    assert not out.exists()


def test_a_path_that_cannot_be_a_folder_is_refused(dsonas, tiny, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    check_refused(dsonas("run", *tiny, "--out", file / "run"), "file", "ot a directory")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(dsonas, tiny, tmp_path):
    tmp_path.chmod(0o500)
    check_refused(dsonas("run", *tiny, "--out", tmp_path / "run"), "ermission denied")
    tmp_path.chmod(0o700)


def test_a_folder_without_a_run_is_refused(dsonas, tmp_path):
    image = tmp_path / "image.png"
    Image.new("L", (8, 8)).save(image)
    check_refused(dsonas("evaluate", "--run", tmp_path), "has no config.yaml")
    check_refused(dsonas("predict", "--run", tmp_path, image), "no finished network")


def test_a_search_alone_is_no_network(dsonas, tiny, tmp_path):
    assert dsonas("search", *tiny, "--out", tmp_path / "run").code == 0
    check_refused(dsonas("evaluate", "--run", tmp_path / "run"), "holds no finished network")


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "other"])
def test_a_damaged_network_is_refused(dsonas, finished, tmp_path, damage):
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "network.safetensors"
    whole = path.read_bytes()
    content = {"cut": whole[:-9], "garbage": b"\xff" * 99, "empty": b""}.get(damage, whole)
    path.write_bytes(content)
    if damage == "other":
        value = json.loads((run / "architecture.json").read_text())
        value["skeleton"]["channels"] = [5, 9]
        (run / "architecture.json").write_text(json.dumps(value))
    check_refused(dsonas("evaluate", "--run", run), "network.safetensors is damaged or not")


def test_damaged_files_of_a_run_are_named(dsonas, tiny, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "metrics.json").write_text("{")
    check_refused(dsonas("run", *tiny, "--out", run), "metrics.json is damaged", "delete it")
    (run / "config.yaml").write_text("{")
    check_refused(dsonas("evaluate", "--run", run), "config.yaml is not a YAML file")


def test_a_folder_of_another_run_is_refused_and_kept(dsonas, tiny, finished):
    before = (finished / "config.yaml").read_bytes()
    ended = dsonas("run", *tiny, "--out", finished, "--seed", 1, "--search.rebuild_every", 2)
    check_refused(
        ended,
        "holds a run with other settings",
        "search.rebuild_every was 1 and is 2",
        "seed was 0",
    )
    assert (finished / "config.yaml").read_bytes() == before


def test_a_diverging_step_can_be_corrected(dsonas, tiny, tmp_path):
    """The message names the option; the corrected command keeps the steps before."""
    out = ["--out", tmp_path / "run"]
    first = dsonas("run", *tiny, *out, "--pretrain.lr", "1e30")
    check_refused(first, "--pretrain.lr", "loss became")
    second = dsonas("run", *tiny, *out, "--train.lr", "1e30")
    check_refused(second, "--train.lr")
    assert "1 pretrain" in second.out
    third = dsonas("run", *tiny, *out)
    assert third.code == 0
    assert "1 pretrain" not in third.out
    assert "2 search" not in third.out


def test_a_network_that_does_not_fit_in_memory_can_be_corrected(dsonas, tiny, tmp_path):
    out = ["--out", tmp_path / "run"]
    ended = dsonas("search", *tiny, *out, "--network.channels", 10**9)
    check_refused(ended, "out of memory", "network.channels")
    assert dsonas("search", *tiny, *out).code == 0


def test_the_budget_of_a_finished_search_can_be_changed(dsonas, tiny, tmp_path):
    """The search is kept; only structure and width are chosen again."""
    out = ["--out", tmp_path / "run"]
    assert dsonas("search", *tiny, *out, "--budget.params", 53).code == 0
    found = Architecture.load(tmp_path / "run" / "architecture.json")
    assert architecture_cost(found).params <= 53
    for limit in (900, 1500):
        ended = dsonas("search", *tiny, *out, "--budget.params", limit)
        assert ended.code == 0
        assert "2 search" not in ended.out
        architecture = Architecture.load(tmp_path / "run" / "architecture.json")
        assert 0.97 * limit <= architecture_cost(architecture).params <= limit
    ended = dsonas("search", *tiny, *out, "--budget.macs", "20k")
    check_refused(ended, "budget.bounds was ['params'] and is ['macs']")


def test_a_new_budget_that_cannot_be_met_is_refused_each_time(dsonas, tiny, tmp_path, monkeypatch):
    """And the architecture for the old budget does not pass for the new one's."""
    out = ["--out", tmp_path / "run"]
    assert dsonas("search", *tiny, *out, "--budget.params", 1500).code == 0

    def refuse(*arguments):
        raise InfeasibleBudgetError("budget is out of reach of every member")

    monkeypatch.setattr("dsonas.run.pipeline.fit_to_budget", refuse)
    for _ in range(2):
        ended = dsonas("search", *tiny, *out, "--budget.params", 900)
        check_refused(ended, "out of reach")
    monkeypatch.undo()
    assert dsonas("search", *tiny, *out, "--budget.params", 900).code == 0
    found = Architecture.load(tmp_path / "run" / "architecture.json")
    assert architecture_cost(found).params <= 900


def test_a_corrected_run_equals_one_that_never_failed(dsonas, tiny, finished, tmp_path):
    from safetensors.numpy import load_file

    out = ["--out", tmp_path / "run"]
    assert dsonas("run", *tiny, *out, "--search.lr", "1e30").code == 2
    assert dsonas("run", *tiny, *out).code == 0
    new, old = (load_file(run / "network.safetensors") for run in (out[1], finished))
    assert all((new[name] == old[name]).all() for name in old)


@pytest.mark.parametrize("case", ["pretrain", "network empty", "budget", "data", "data name"])
def test_a_printed_configuration_is_checked(dsonas, case):
    arguments, *fragments = OPTIONS[case]
    check_refused(dsonas("run", "--print_config", *arguments.split()), *fragments)
