"""From options, recipes and YAML files to a ``RunConfig``, by jsonargparse."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse._actions import ActionConfigFile

from dsonas._utils import (
    BatchSize,
    NonNegativeInt,
    PositiveInt,
    absolute_path,
    fingerprint,
    import_file,
    rule_of,
)
from dsonas.data import short_name
from dsonas.run import RunConfig, read_settings, renamed, upgraded
from dsonas.train import STAGES

KINDS = {name: kind for name, kind in get_type_hints(RunConfig).items() if name != "seed"}
GROUPS = tuple(KINDS)
_TITLES = {
    "data": "data (the images, their parts and their augmentation)",
    "network": "network (the supernet)",
    "pretrain": "pretrain (step 1: train the supernet)",
    "search": "search (step 2: train weights and scaling factors, remove what is worth least)",
    "budget": "budget (upper bounds on the network found)",
    "train": "train (step 3: train the network found)",
    "engine": "engine (where and how to compute)",
    "log": "log (where the run is tracked besides its log.csv)",
}
SUBJECTS = ("architecture", "model", "weights")  # what a run trains, where it is given
IMPORT = "--import"
_NO_SETTINGS = ("help", "print_config", "import", "config", "json")


class UsageError(ValueError):
    """Options that cannot be used; the message is one line."""


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


class _ImportFile(argparse.Action):
    """Import a Python file of the user's, which registers own operations."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        import_file(Path(value), IMPORT)
        namespace[self.dest] = [*(namespace.get(self.dest) or ()), value]


class OptionParser(ArgumentParser):
    """A parser whose errors are one line, raised as ``UsageError``."""

    default_is = ""  # what the help calls every default of ``RunConfig``, if not by its value

    def __init__(self, command: str, usage: str, description: str) -> None:
        super().__init__(
            prog=f"dsonas {command}",
            usage=f"dsonas {command} {usage}",
            # a table of its own stays as it is
            description=description if "\n" in description else fill(description, 96),
            formatter_class=_Help,
            print_config=None,
            allow_abbrev=False,
        )
        text = "import a Python file first, with operations of your own"
        self.add_argument(IMPORT, action=_ImportFile, default=argparse.SUPPRESS, metavar="FILE.py",
                          help=text)  # fmt: skip

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        """Raise what is wrong."""
        message = re.sub("^Parser key .* - (?=Parser key)", "", " ".join(message.split()))
        if found := re.match(r'Parser key "([^"]+)"', message):
            hints = {a.dest: hint for a in self._actions if (hint := getattr(a, "_typehint", None))}
            hint = next((h for dest, h in hints.items() if found[1] in (dest, f"{dest}.")), None)
            got = re.search(".*(?:Got|Given) value: (.*)", message) or re.search(
                r"type \w+: (\S+) (?:does not|not an)|(?:base 10|to float): '(.*)'", message
            )
            if hint is not None and (got or "'NoneType'" in message):
                value = repr(next(filter(None, got.groups()), "")) if got else "null"
                message = f"{found[1]} must be {rule_of(hint)}, got {value}"
        elif found := re.match(r"the following arguments are required: ([^\s,]+)", message):
            named = {a.dest: a.metavar or a.dest for a in self._actions if not a.option_strings}
            name = named.get(found[1], f"--{found[1]}")
            message = f"{name} is required: give it, see {self.prog} --help"
        elif found := re.match(r"argument --(\w+): invalid \w+ value: ('.*')", message):
            hint = next(a.type for a in self._actions if a.dest == found[1])
            message = f"{found[1]} must be {rule_of(hint)}, got {found[2]}"
        elif found := re.match(r"unrecognized arguments: (\S+)", message):
            message = unknown_option(found[1].split("=")[0], self.keys, "--")
        raise UsageError(message) from None

    def format_help(self) -> str:
        """Describe every option in a line or two."""
        for action in self._actions:
            if action.help != argparse.SUPPRESS and (hint := getattr(action, "_typehint", None)):
                _describe(action, hint, self.default_is)
        return super().format_help()

    @property
    def keys(self) -> list[str]:
        """The dotted names of all options."""
        options = [action.dest for action in self._actions if action.option_strings]
        return [name for name in options if name not in (*_NO_SETTINGS, *GROUPS)]


def user_code(values: Namespace) -> dict[str, str]:
    """The Python files that ``--import`` and ``data.augment`` name: SHA-256 by file name."""
    files = [*(values.get("import") or ()), values.data.augment.rpartition(":")[0]]
    paths = [path for file in files if (path := Path(file)).is_file()]
    return {path.name: fingerprint(path) for path in paths}


def unknown_option(name: str, known: Iterable[str], dashes: str = "") -> str:
    """Say what an option is called now, or the nearest name that is one."""
    bare = name.removeprefix("--")
    if dashes and bare == name:
        return f"unexpected argument {name!r}: options start with --"
    if new := renamed(bare):
        return f"{dashes}{bare} {new}"
    group, dot, last = bare.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.startswith(group + dot)}
    near = get_close_matches(last, siblings, n=1)
    hint = f"did you mean {dashes}{siblings[near[0]]}?" if near else "--help lists all options"
    return f"unknown option {dashes}{bare}: {hint}"


class _ConfigFile(ActionConfigFile):
    """A recipe or file, with its bases, after a check of its keys."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: Any, value: Any) -> None:
        settings = read_settings(value)
        for option in flatten(settings):
            if option.split(".")[0] in GROUPS and "." not in option:
                raise UsageError(f"{value}: {option} must hold options, got {settings[option]!r}")
            if option not in parser.keys:
                raise UsageError(f"{value}: {unknown_option(option, parser.keys)}")
        try:
            ActionConfigFile.apply_config(parser, cfg, dest, yaml.safe_dump(settings))
        except (TypeError, ValueError) as error:
            reason = str(error).removeprefix(f'Parser key "{dest}": ')
            raise UsageError(f"{value}: {reason}") from None
        cfg[dest][-1] = value


class _AllSteps(argparse.Action):
    """Set an option of every step."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option: str | None = None) -> None:
        for step in STAGES:
            namespace[f"{step}.{self.dest}"] = value


def config_parser(command: str, description: str, shown: Sequence[str]) -> OptionParser:
    """Make the parser of a command that takes a whole configuration.

    Its help lists the groups in ``shown``; the others are accepted silently.
    """
    parser = OptionParser(command, "[--config NAME_or_FILE] [--out DIR] [OPTIONS]", description)
    add = parser.add_argument
    add("--config", action=_ConfigFile, metavar="NAME_or_FILE",
        help="a recipe (dsonas --help lists them), or a YAML file of these options, perhaps with a "
        "base: another of either; options after it override it")  # fmt: skip
    add("--out", type=str, default=None, metavar="DIR", help="run folder [runs/NAME]")
    add("--seed", type=NonNegativeInt, default=0, metavar="N", help="fixes every random choice")
    for name, kind in (("epochs", PositiveInt), ("batch_size", BatchSize)):
        add(f"--{name}", action=_AllSteps, type=kind, default=argparse.SUPPRESS, metavar="N",
            help="of all steps at once")  # fmt: skip
    add("--print_config", action="store_true", help="print the whole configuration and end")
    add_groups(parser, GROUPS, shown)
    return parser


def add_groups(parser: OptionParser, names: Sequence[str], shown: Sequence[str]) -> None:
    """Add the options of groups of ``RunConfig``, each as ``--GROUP.NAME``.

    The help lists those in ``shown``, groups or options.
    """
    for name in names:
        parser.add_class_arguments(KINDS[name], name, help=_TITLES[name])
    for action in parser._actions:
        group, dot, _ = action.dest.partition(".")
        if group in names and (not dot or not {group, action.dest} & {*shown}):
            action.help = argparse.SUPPRESS


def _describe(action: argparse.Action, hint: Any, default_is: str) -> None:
    """Its first sentence, what kind of value it takes, and its default."""
    text = re.split(r"(?<!\.)\. ", (action.help or "").replace("``", ""))[0].removesuffix(".")
    default = (action.dest.partition(".")[0] in GROUPS and default_is) or action.default
    if isinstance(default, tuple):
        default = ", ".join(map(str, default))
    elif isinstance(default, bool):
        default = str(default).lower()
    said = default in (None, "", argparse.SUPPRESS) or "default" in text
    action.help = text.replace("%", "%%") + ("" if said else f" [{default}]")
    if action.option_strings and str(action.metavar or "{").startswith(("{", "[ITEM")):
        rule = rule_of(hint).split(" or ")[0]
        kinds = {"a who": "N", "a num": "X", "true": "true|false", "a lis": "[A,B,...]"}
        choices = rule.removeprefix("one of ").replace(", ", "|")
        action.metavar = kinds.get(rule[:5], choices if choices != rule else "TEXT")


def parse(parser: OptionParser, arguments: Sequence[str]) -> Namespace:
    """Parse the arguments of a command.

    Raises:
        UsageError: if an option is unknown, missing or of the wrong type.
        SystemExit: after printing help or the configuration, if the arguments ask for it.
    """
    _check_words(parser, arguments)
    values = parser.parse_args(list(arguments))
    if empty := [name for name, value in values.items() if value == ""]:
        raise UsageError(f"{empty[0]} must not be empty: give it a value")
    for name in ("data.augment", "network.supernet", "model"):
        value = values.get(name) or ""
        if ".py:" in value and not any(a.startswith(f"--{name}") for a in arguments):
            raise UsageError(
                f"{name} {value} runs code, which a file of options never does: give it on the "
                f"command line, --{name} {value}"
            )
    if values.get("print_config"):
        others = {name: value for name, value in values.items(branches=True) if "." not in name}
        given = {name: value for name, value in others.items() if value is not None}
        settings = {**given, **to_config(values).groups()}
        print(to_yaml({k: v for k, v in settings.items() if k not in _NO_SETTINGS}), end="")
        raise SystemExit(0)
    return values


def _check_words(parser: OptionParser, arguments: Sequence[str]) -> None:
    """Refuse empty words, and values of whole groups."""
    for before, word in pairwise(["", *arguments]):
        joined = word.startswith("--") and "=" in word
        option, _, value = word.partition("=") if joined else (before, "", word)
        name = option.removeprefix("--")
        if not value:
            what = option if option != name else "an argument"
            raise UsageError(f"{what} must not be empty: give it a value")
        if option != name and name in GROUPS and any(k.startswith(f"{name}.") for k in parser.keys):
            raise UsageError(f"{name} must hold options, as --{name}.NAME does, got {value!r}")


def run_name(values: Namespace) -> str:
    """What a run is called that gives no folder: after its last recipe or file, or its data."""
    return Path(str(values.config[-1])).stem if values.config else short_name(values.data.name)


def stored_config(
    folder: Path, *, resumes: bool = False
) -> tuple[RunConfig, dict[str, str | None]]:
    """Read the configuration that a run folder holds, and what the run is about, of ``SUBJECTS``.

    Args:
        folder: of a run, perhaps of an earlier dsonas, some of whose settings had other names.
        resumes: whether the run is to go on, which one of other settings cannot.

    Raises:
        UsageError: if there is none, or it cannot be used.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{folder} must be the folder of a run, but has no config.yaml")
    settings = read_settings(path)
    current = upgraded(settings)
    if resumes and current != settings:
        former = [name for name in flatten(settings) if renamed(name)]
        raise UsageError(
            f"{folder} holds a run of an earlier dsonas with other settings "
            f"({', '.join(f'{name} {renamed(name)}' for name in former)}): it can be evaluated, "
            "exported and reported, not resumed; choose another --out"
        )
    subjects = {name: current.pop(name, None) for name in SUBJECTS}
    for name in KINDS:
        if not isinstance(current.get(name, {}), Mapping):
            raise UsageError(f"{path}: {name} must hold options, got {current[name]!r}")
    if not resumes and ".py:" in str(current.get("data", {}).get("augment")):
        current["data"]["augment"] = "none"  # nothing trains, and a file never runs code
    parser = config_parser("run", "", ())
    try:
        return to_config(parser.parse_string(yaml.safe_dump(current))), subjects
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Write nested mappings as one with dotted keys.

    Example:
        >>> flatten({"train": {"lr": 0.1}, "seed": 0})
        {'train.lr': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def to_config(values: Namespace, **others: Any) -> RunConfig:
    """Make the configuration that parsed options stand for; its paths become absolute.

    ``others`` are fields of ``RunConfig`` for which the parser had no option.
    """
    given = {name: kind(**values[name].as_dict()) for name, kind in KINDS.items() if name in values}
    if "data" in given:  # what a run folder holds is read from everywhere
        given["data"] = given["data"].absolute()
    if "network" in given:
        given["network"] = given["network"].absolute()
    if "engine" in given and given["engine"].latency_table is not None:
        table = absolute_path(given["engine"].latency_table)
        given["engine"] = replace(given["engine"], latency_table=table)
    seed = {"seed": values["seed"]} if "seed" in values else {}
    return RunConfig(**seed, **given, **others)


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Write settings as YAML text that ``--config`` reads."""
    plain = json.loads(json.dumps(settings))  # YAML's lists are no tuples
    return yaml.safe_dump(plain, sort_keys=False)
