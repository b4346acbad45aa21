"""Help of a command: every option of its groups, what kind of value it takes, its default."""

import re

import pytest

from dsonas.commands.cli import COMMANDS
from dsonas.run.recipes import recipe_names
from dsonas.run.run_config import RunConfig

SETTINGS = RunConfig().settings()
STEPS = {"search": {"train"}, "train": {"network", "pretrain", "search"}}  # groups left out
GROUPS = ("data", "network", "pretrain", "search", "budget", "train", "engine", "log")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_in_plain_words(dsonas, command):
    ended = dsonas(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith(f"usage: dsonas {command} ")
    assert not re.search(r"None|Union|typing|tuple|<class|``|==SUPPRESS|%\(", ended.out)
    assert max(map(len, ended.out.splitlines())) <= 100


@pytest.mark.parametrize("command", ["run", "search", "train", "compare"])
def test_every_setting_of_a_step_has_an_option(dsonas, command):
    text = dsonas(command, "--help").out
    for key, default in SETTINGS.items():
        listed = key == "seed" or key.split(".")[0] not in STEPS.get(command, ())
        assert bool(re.search(rf"^  --{re.escape(key)} ", text, re.MULTILINE)) == listed, key
        if listed and isinstance(default, int) and not isinstance(default, bool):
            part = text[text.index(f"--{key} ") :].split("\n  --")[0]
            assert f"[{default}]" in part, key
    shown = [name for name in GROUPS if name not in STEPS.get(command, ())]
    assert re.findall(r"^(\w+) \(.*\):$", text, re.MULTILINE) == shown


def test_a_value_is_described_by_its_kind(dsonas):
    text = dsonas("run", "--help").out
    for line in (
        "--search.epochs N ", "--train.lr X ", "--data.flip true|false ", "--data.name TEXT ",
        "--network.blocks [A,B,...] ", "--search.space share|full ", "--log.trackers [A,B,...] ",
    ):  # fmt: skip
        assert f"  {line}" in text


def test_the_defaults_of_evaluate_are_those_of_the_run(dsonas):
    text = " ".join(dsonas("evaluate", "--help").out.split())
    options = re.findall(r"--((?:data|engine)\.\w+) .*?\[([^]]*)\](?= --|$| engine)", text)
    assert len(options) == 9
    assert {default for _, default in options} == {"that of the run"}


def test_the_overview_lists_every_command_and_recipe(dsonas):
    text = dsonas("--help").out
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", text, re.MULTILINE)
    assert all(name in text for name in recipe_names())
