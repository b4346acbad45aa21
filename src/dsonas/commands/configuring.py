"""From options, recipes and YAML files to a ``RunConfig``: parsing, help, and plain errors."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from dsonas._utils import rule_of
from dsonas.commands.importing import OPTION as IMPORT, import_files
from dsonas.commands.short_help import asked_help
from dsonas.run import RENAMED, RunConfig, recipe_names, recipe_path

GROUPS = tuple(entry.name for entry in fields(RunConfig) if entry.name != "seed")
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
_NO_SETTINGS = ("help", "print_config", "import")  # a file of options alone never runs code
_RULES = {
    bool: ("true|false", "true or false"),
    int: ("N", "a whole number"),
    float: ("X", "a number"),
    str: ("TEXT", "a text"),
}


class UsageError(ValueError):
    """Options that cannot be used; the message is one line."""


class OptionParser(ArgumentParser):
    """A parser whose errors are one plain line, raised as ``UsageError``."""

    def __init__(self, command: str, usage: str, description: str) -> None:
        super().__init__(
            prog=f"dsonas {command}",
            usage=f"dsonas {command} {usage}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        text = "import a Python file first, with operations of your own"
        self.add_argument(IMPORT, default=argparse.SUPPRESS, metavar="FILE.py", help=text)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        """Say what is wrong in the user's words."""
        raise UsageError(self._plain(" ".join(message.split()))) from None

    def help_of(self, section: str) -> str:
        """The complete help, or that of one group of the configuration.

        Args:
            section: name of the group; ``all`` or nothing for the complete help.
        """
        text = self.format_help().rstrip("\n")
        if section in ("", "all"):
            return text
        parts = text.split("\n\n")
        titles = [name for name in GROUPS for part in parts if part.startswith(f"{name} (")]
        if section not in titles:
            known = ", ".join(titles) or "nothing"
            raise UsageError(f"--help must be followed by {known}, got {section!r}: or --help-all")
        return next(part for part in parts if part.startswith(f"{section} ("))

    @property
    def keys(self) -> list[str]:
        """The dotted names of all options."""
        return [a.dest for a in self._actions if a.dest not in _NO_SETTINGS]

    def _kind_of(self, key: str) -> Any:
        """The type of an option of this command alone, or of one of a configuration."""
        hints = {action.dest: getattr(action, "_typehint", None) for action in self._actions}
        return hints.get(key) or _type_of(key)

    def _plain(self, message: str) -> str:
        if found := re.match(
            r'Parser key "([^"]+)": .*(?:(?:Got|Given) value|[^:]*): (\S+)', message
        ):
            return f"{found[1]} must be {rule_of(self._kind_of(found[1]))}, got {found[2]!r}"
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            return unknown_option(found[1].split("=")[0], self.keys, dashes="--")
        if found := re.match(r"the following arguments are required: (\S+)", message):
            return f"{found[1]} is required: give it, see {self.prog} --help"
        return message


def unknown_option(name: str, known: Iterable[str], dashes: str = "") -> str:
    """The message for a name that is not an option, with the nearest one that is."""
    if dashes and not name.startswith("-"):
        return f"unexpected argument {name!r}: options start with --"
    bare = name.removeprefix("--")
    if bare in RENAMED:
        return f"{dashes}{bare} {RENAMED[bare]}"
    group, dot, last = bare.rpartition(".")
    siblings = {key.rpartition(".")[2]: key for key in known if key.startswith(group + dot)}
    near = get_close_matches(last, siblings, n=1)
    hint = f"did you mean {dashes}{siblings[near[0]]}?" if near else "--help-all lists all options"
    return f"unknown option {dashes}{bare}: {hint}"


def config_parser(command: str, description: str, shown: Sequence[str]) -> OptionParser:
    """The parser of a command that takes a whole configuration.

    Args:
        command: its name.
        description: what it does, for the help.
        shown: groups that the help lists; the others are accepted silently.
    """
    parser = OptionParser(command, "[--config NAME_or_FILE] [--out DIR] [OPTIONS]", description)
    add = parser.add_argument
    add("--config", action="config", metavar="NAME_or_FILE",
        help=f"a recipe ({', '.join(recipe_names())}), or a YAML file of these options;\n"
        "options after it override it")  # fmt: skip
    add("--out", type=str, default=None, metavar="DIR", help="run folder (default runs/NAME)")
    add("--seed", type=int, default=0, metavar="N", help="fixes every random choice (default 0)")
    add("--resume", action="store_true", help="accepted; the same command resumes anyway")
    add_groups(parser, GROUPS, shown)
    return parser


def add_groups(parser: OptionParser, names: Sequence[str], shown: Sequence[str]) -> None:
    """Add the options of groups of ``RunConfig``, each as ``--GROUP.NAME``."""
    for name in names:
        parser.add_class_arguments(_group_class(name), name)
    for group in parser._action_groups:
        group.title = next((_TITLES[n] for n in names if _holds(group, n)), group.title)
    for action in parser._actions:
        name, dot, _ = action.dest.partition(".")
        if action.dest == "print_config":
            action.help = "print the resulting configuration as YAML and end"
            action.metavar = ""
        elif name in names:
            _describe(action) if dot and name in shown else _hide(action)


def _holds(group: Any, name: str) -> bool:
    return any(action.dest.startswith(f"{name}.") for action in group._group_actions)


def _hide(action: argparse.Action) -> None:
    action.help = argparse.SUPPRESS


def _describe(action: argparse.Action) -> None:
    text = " ".join((action.help or "").replace("``", "").split()).replace("None:", "Left out:")
    text = text.replace("None ", "null ").removesuffix(".").replace("%", "%%")
    default = action.default
    if default is not None:
        shown = yaml.safe_dump(_lists(default), default_flow_style=True).split("\n...")[0].strip()
        text += f" (default {shown})"
    action.metavar, action.help = _metavar(_type_of(action.dest)), text


def _metavar(hint: Any) -> str:
    kinds = [kind for kind in _kinds(hint) if kind is not NoneType]
    if get_origin(kinds[0]) is Literal:
        return "|".join(get_args(kinds[0]))
    if get_origin(kinds[0]) is tuple:
        return "[A,B,...]"
    return next(text for kind, (text, _) in _RULES.items() if issubclass(kinds[0], kind))


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


def _type_of(key: str) -> Any:
    group, dot, name = key.partition(".")
    if not dot or group not in GROUPS:
        return {"seed": int, "resume": bool, "pareto": int}.get(key, str)
    return get_type_hints(_group_class(group)).get(name.split(".")[0], str)


def _group_class(name: str) -> type:
    return get_type_hints(RunConfig)[name]


def parse(parser: OptionParser, arguments: Sequence[str]) -> Namespace:
    """Import the files of ``--import``, check those of ``--config``, parse the arguments.

    Raises:
        UsageError: if an option is unknown, missing or of the wrong type.
        SystemExit: after printing help, if the arguments ask for it.
    """
    if (section := asked_help(arguments)) is not None:
        print(parser.help_of(section))
        raise SystemExit(0)
    found = import_files(arguments)
    for i, argument in enumerate(found):
        group = argument.split("=")[0].removeprefix("--")
        if argument.startswith("--") and group in GROUPS:
            raise UsageError(f"unknown option --{group}: its options are named --{group}.NAME")
        if argument.startswith("--config="):
            found[i] = f"--config={_config_file(parser, argument.removeprefix('--config='))}"
        elif argument == "--config" and i + 1 < len(found):
            found[i + 1] = _config_file(parser, found[i + 1])
    return parser.parse_args(found)


def _config_file(parser: OptionParser, name: str) -> str:
    """The path of a recipe or file, after a check of its keys."""
    if name in recipe_names():
        return str(recipe_path(name))
    if not Path(name).is_file():
        known = ", ".join(recipe_names())
        raise UsageError(f"--config must be a file or one of {known}, got {name!r}")
    for key, value in read_yaml(Path(name)).items():
        if key in GROUPS and not isinstance(value, Mapping):
            raise UsageError(f"{name}: {key} must hold options such as {key}: {{...}}, got {value}")
        for option in flatten({key: value}):
            if option not in parser.keys:
                raise UsageError(f"{name}: {unknown_option(option, parser.keys)}")
    return name


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of options.

    Raises:
        UsageError: if it is not one.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{path} must hold options such as data: {{name: digits}}, got {value!r}")
    return dict(value)


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys.

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
    """The configuration that parsed options stand for.

    Args:
        values: the options.
        others: fields of ``RunConfig`` for which the parser had no option.
    """
    given = {name: values[name] for name in ("seed", *GROUPS) if name in values}
    for name in GROUPS:
        if name in given:
            given[name] = _group_class(name)(**given[name].as_dict())
    return RunConfig(**given, **others)


def to_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML text that ``--config`` reads."""
    return yaml.safe_dump(_lists(settings), sort_keys=False)


def _lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
