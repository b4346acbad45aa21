"""Names of options, configuration files and what overrides what, help."""

import re
import time
from pathlib import Path

import pytest
import yaml

from dsonas.run.run_config import RunConfig

SETTINGS = RunConfig().settings()


def printed(dsonas, *arguments) -> dict:
    ended = dsonas("run", *arguments, "--print_config")
    assert ended.code == 0
    return yaml.safe_load(ended.out)


@pytest.mark.parametrize("command", ["run", "search", "train", "evaluate", "predict"])
def test_help_is_grouped_and_hides_internals(dsonas, command):
    ended = dsonas(command, "--help-all")
    assert ended.code == 0
    assert ended.out.startswith(f"usage: dsonas {command} ")
    assert not re.search(r"None|Union|typing|tuple|<class|``|config_file|==SUPPRESS", ended.out)
    assert max(map(len, ended.out.splitlines())) <= 120


def test_every_setting_has_an_option(dsonas):
    text = dsonas("run", "--help-all").out
    for key in SETTINGS:
        assert re.search(rf"^  --{re.escape(key)} ", text, re.MULTILINE), key
    for name in ("data", "network", "pretrain", "search", "budget", "train", "engine", "log"):
        assert f"\n{name} (" in text


def test_help_of_a_step_shows_its_groups_only(dsonas):
    assert "--pretrain.lr" not in dsonas("train", "--help-all").out
    assert "--train.lr" not in dsonas("search", "--help-all").out


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
        assert printed(dsonas, "--config", name)


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("network.blocks", "[1,1]", [1, 1]),
        ("network.blocks", "[1, 2, 3]", [1, 2, 3]),
        ("network.operations", "[max_pool3x3, separable_conv5x5]", None),
        ("search.space", "full", "full"),
        ("data.name", "folder:/some/where", "folder:/some/where"),
        ("data.augment", "my.py:vary", "my.py:vary"),
        ("data.flip", "false", False),
        ("train.clip", "null", None),
        ("train.lr", "1e-4", 1e-4),
        ("budget.params", "20000", None),
    ],
)
def test_values_of_options(dsonas, option, text, expected):
    group, name = option.split(".")
    value = printed(dsonas, f"--{option}", text)[group][name]
    assert expected is None or value == expected


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
    assert dsonas("search", "--config", "mine.yaml", *tiny, "--resume").code == 0
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
    ],
)  # fmt: skip
def test_a_former_option_says_what_it_is_now(dsonas, tmp_path, old, text):
    group, name = old.split(".")
    (tmp_path / "old.yaml").write_text(f"{group}:\n  {name}: 0\n")
    for arguments in ([f"--{old}", "0"], ["--config", tmp_path / "old.yaml"]):
        ended = dsonas("run", *arguments, "--print_config")
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert f"{old} is " in ended.err
        assert text in ended.err
