"""Names of options, configuration files and what overrides what, help."""

import re
import time
from pathlib import Path

import pytest
import yaml

from dsonas.commands.cli import main
from dsonas.run.run_config import RENAMED, RunConfig


def printed(dsonas, *arguments) -> dict:
    ended = dsonas("run", *arguments, "--print_config")
    assert ended.code == 0
    return yaml.safe_load(ended.out)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_are_quick(start, argument):
    def seconds() -> float:
        began = time.perf_counter()
        process = start(argument)
        out, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert "dsonas" in out
        return time.perf_counter() - began

    assert min(seconds() for _ in range(3)) < 0.7  # the machine may be busy


def test_overview_names_commands_recipes_and_codes(dsonas):
    ended = dsonas()
    assert ended == dsonas("--help")
    for word in ("run", "search", "train", "evaluate", "predict", "digits", "130", "143"):
        assert re.search(rf"\b{word}\b", ended.out)


def test_printed_config_works_as_config(dsonas, tmp_path: Path):
    file = tmp_path / "printed.yaml"
    options = ["--config", "digits", "--train.lr", "1e-3", "--budget.macs", "1.5M"]
    file.write_text(dsonas("run", *options, "--print_config").out)
    assert printed(dsonas, "--config", file) == yaml.safe_load(file.read_text())


def test_overrides_after_the_config_win(dsonas, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {lr: 0.5, epochs: 7}\nseed: 3\n")
    values = printed(dsonas, "--config", file, "--train.lr", 0.25, "--seed=4")
    assert (values["train"]["lr"], values["train"]["epochs"], values["seed"]) == (0.25, 7, 4)
    values = printed(dsonas, "--config=digits", f"--config={file}")
    assert (values["train"]["lr"], values["network"]["levels"]) == (0.5, 3)


def test_a_recipe_wins_over_a_folder_of_its_name(dsonas, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert printed(dsonas, "--config", "digits")["network"]["levels"] == 3


def test_every_recipe_is_valid(dsonas):
    from dsonas.run.recipes import recipe_names

    for name in recipe_names():
        place = ["--data.name", "folder:images"] if name.startswith("imagenet") else []
        assert printed(dsonas, "--config", name, *place)


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("network.blocks", "[1,1]", [1, 1]),
        ("network.blocks", "[1, 2, 3]", [1, 2, 3]),
        ("network.operations", "[max_pool3x3, separable_conv5x5]", None),
        ("search.space", "full", "full"),
        ("data.name", "folder:/some/where", "folder:/some/where"),
        ("data.augment", "/my.py:vary", "/my.py:vary"),
        ("data.flip", "false", False),
        ("search.keep_cost", "null", None),
        ("train.lr", "1e-4", 1e-4),
        ("budget.params", "20000", None),
    ],
)
def test_values_of_options(dsonas, option, text, expected):
    group, name = option.split(".")
    value = printed(dsonas, f"--{option}", text)[group][name]
    assert expected is None or value == expected


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("data.image_size", "1e3", "must be a whole number >= 4 or null, got '1e3'"),
        ("search.epochs", "null", "must be a whole number > 0, got null"),
        ("train", "3", "must hold options, as --train.NAME does, got '3'"),
        ("train", '{"lr": 1}', "must hold options, as --train.NAME does, got '{\"lr\": 1}'"),
        ("data", "folder:x", "must hold options, as --data.NAME does, got 'folder:x'"),
    ],
)
def test_values_that_no_option_takes(dsonas, option, text, message):
    ended = dsonas("run", f"--{option}", text)
    assert ended == (2, "", f"dsonas: error: {option} {message}\n")


def test_a_group_is_not_taken_from_a_file_of_its_own(dsonas, tmp_path):
    (tmp_path / "train.yaml").write_text("lr: 0.3\n")
    ended = dsonas("run", f"--train={tmp_path / 'train.yaml'}", "--print_config")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "train must hold options, as --train.NAME does" in ended.err


def test_an_option_of_all_steps_may_stand_in_a_file(dsonas, tmp_path):
    (tmp_path / "base.yaml").write_text("epochs: 7\ntrain: {epochs: 3}\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nepochs: 2\nsearch: {epochs: 5}\n")
    values = printed(dsonas, "--config", tmp_path / "mine.yaml")
    assert [values[step]["epochs"] for step in ("pretrain", "search", "train")] == [2, 5, 2]
    (tmp_path / "mine.yaml").write_text("batch_size: few\n")
    ended = dsonas("run", "--config", tmp_path / "mine.yaml")
    assert (ended.code, "batch_size must be a whole number >= 2, got 'few'" in ended.err) == (
        2,
        True,
    )


def test_the_config_of_a_plan_is_that_of_a_run(dsonas):
    assert yaml.safe_load(dsonas("plan", "--print_config").out) == printed(dsonas)


def test_merged_keys_of_a_file_are_no_repetition(dsonas, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("pretrain: &both {lr: 1, epochs: 3}\nsearch: {<<: *both, lr: 2}\n")
    values = printed(dsonas, "--config", file)
    assert (values["search"]["lr"], values["search"]["epochs"]) == (2, 3)


def test_the_resolved_config_states_budgets_as_numbers(dsonas, tiny, tmp_path):
    out = tmp_path / "run"
    assert dsonas("search", *tiny, "--budget.macs", "1.5M", "--out", out).code == 0
    values = yaml.safe_load((out / "config.yaml").read_text())
    assert values["budget"] == {**values["budget"], "macs": 1.5e6, "params": None}
    assert values["network"]["blocks"] == [1, 1]


def test_out_defaults_to_the_name_of_the_recipe_or_data(dsonas, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert dsonas("search", *tiny).code == 0
    assert (tmp_path / "runs" / "digits" / "architecture.json").exists()
    (tmp_path / "mine.yaml").write_text("search: {space: full}\n")
    assert dsonas("search", "--config", "mine.yaml", *tiny).code == 0
    assert (tmp_path / "runs" / "mine" / "architecture.json").exists()


def documented_commands() -> list[str]:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    lines = [line.strip().split(" > ")[0] for line in page.splitlines() if line.startswith("    ")]
    return [line for line in lines if re.match(r"dsonas (run|search|train) ", line)]


@pytest.mark.parametrize("command", documented_commands())
def test_documented_commands_are_valid(dsonas, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    arguments = [word for word in command.split()[1:] if word != "--print_config"]
    assert dsonas(*arguments, "--print_config").code == 0


@pytest.mark.parametrize(
    ("old", "text"),
    [
        ("data.lambda_fraction", "data.factor_split"), ("data.path", "folder:PATH"),
        ("data.crop_padding", "data.augment"), ("data.crop_area", "data.augment"),
        ("data.jitter", "data.augment"), ("data.memory_limit", "leave it out"),
        *RENAMED.items(),
    ],
)  # fmt: skip
def test_a_former_option_says_what_it_is_now(dsonas, tmp_path, old, text):
    group, dot, name = old.partition(".")
    (tmp_path / "old.yaml").write_text(f"{group}:\n  {name}: 0\n" if dot else f"{old}: 0\n")
    for arguments in ([f"--{old}", "0"], ["--config", tmp_path / "old.yaml"]):
        ended = dsonas("run", *arguments, "--print_config")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert f"{old} " in ended.err
        assert text in ended.err


def test_no_former_name_is_in_use():
    current = RunConfig().settings()
    assert len(current) <= 64
    assert not {*RENAMED} & {*current}
    assert {new for new in RENAMED.values() if " " not in new} <= {*current}


def test_one_option_for_all_steps(dsonas):
    values = printed(
        dsonas, "--config", "digits", "--epochs", 3, "--batch_size=16", "--train.epochs", 4
    )
    epochs = [values[step]["epochs"] for step in ("pretrain", "search", "train")]
    sizes = [values[step]["batch_size"] for step in ("pretrain", "search", "train")]
    assert (epochs, sizes) == ([3, 3, 4], [16] * 3)
    for name, least in (("epochs", "> 0"), ("batch_size", ">= 2")):
        ended = dsonas("run", f"--{name}", 0)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert f"error: {name} must be a whole number {least}, got '0'" in ended.err


def test_a_trained_model_is_searched_for_a_short_time(dsonas):
    given = ("--model", "a.py:b", "--budget.macs", "50%", "--print_config")
    config = yaml.safe_load(dsonas("compress", *given).out)
    assert (config["search"]["epochs"], config["search"]["lr"]) == (2, 0.02)
    assert config["train"]["lr"] == 0.05


def test_a_printed_configuration_is_checked(dsonas):
    for options in (["--network.operations", "[x]"], ["--network.blocks", "[]"]):
        ended = dsonas("run", *options, "--print_config")
        assert (ended.code, ended.out, "network." in ended.err) == (2, "", True)


def test_a_file_goes_on_from_its_base(dsonas, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "first.yaml").write_text("base: digits\ntrain: {lr: 0.3}\nseed: 2\n")
    (tmp_path / "second.yaml").write_text("base: deep/first.yaml\ntrain: {epochs: 7}\nseed: 3\n")
    values = printed(dsonas, "--config", tmp_path / "second.yaml", "--search.epochs", 9)
    train = values["train"]
    assert (train["lr"], train["epochs"], train["batch_size"]) == (0.3, 7, 64)
    assert (values["seed"], values["search"]["epochs"], values["network"]["levels"]) == (3, 9, 3)


def test_a_base_that_leads_back_is_refused(dsonas, tmp_path):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}.yaml\n")
    ended = dsonas("run", "--config", tmp_path / "a.yaml")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "a.yaml -> b.yaml -> c.yaml -> a.yaml" in ended.err


def test_a_base_that_is_not_there_is_refused(dsonas, tmp_path):
    (tmp_path / "a.yaml").write_text("base: nothing.yaml\n")
    ended = dsonas("run", "--config", tmp_path / "a.yaml")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "a.yaml must be a file or one of" in ended.err
    assert "'nothing.yaml'" in ended.err


def test_a_file_of_options_never_runs_code_of_a_transform(tmp_path, capsys):
    code = tmp_path / "mine.py"
    code.write_text("raise SystemExit('this ran')\n")
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: {{augment: '{code}:function'}}\n")
    assert main(["run", "--config", str(file), "--out", str(tmp_path / "run")]) == 2
    assert "give it on the command line" in capsys.readouterr().err
