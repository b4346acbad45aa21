"""The command line. Heavy imports wait until a command needs them."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from dsonas.config import RunConfig

USAGE = """\
usage: dsonas COMMAND [OPTIONS]

Find a compact network for your own images in one training run.

  run        search, fit to the budget, train and measure: the whole job
  search     steps 1 and 2: pretrain the supernet and search it
  train      step 3: train an architecture file
  evaluate   measure a finished run on its test images
  predict    classify image files with a finished run

`dsonas COMMAND --help` lists its options. Start with:

  dsonas run --config digits                                       (a minute)
  dsonas run --data.name folder:my_images --budget.macs 2M         (your own)

Recipes for --config: {recipes}
"""

EXIT_DONE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE.format(recipes=", ".join(recipe_names())), end="")
        return EXIT_DONE
    if arguments[0] == "--version":
        from dsonas import __version__

        print(f"dsonas {__version__}")
        return EXIT_DONE
    if arguments[0] not in COMMANDS:
        known = ", ".join(COMMANDS)
        return _complain(f"command must be one of {known}, got {arguments[0]!r}")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        return COMMANDS[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as error:
        return _complain(str(error))


def recipe_names() -> list[str]:
    """The recipes that ``--config`` knows by name."""
    entries = files("dsonas").joinpath("recipes").iterdir()
    return sorted(entry.name[:-5] for entry in entries if entry.name.endswith(".yaml"))


def _complain(message: str) -> int:
    print(f"dsonas: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _run(arguments: Sequence[str]) -> int:
    return _with_job("run", arguments, lambda job: job.train(job.search()))


def _search(arguments: Sequence[str]) -> int:
    def steps(job: Any) -> None:
        from dsonas.drawing import draw_architecture

        job.reporter.say(f"\n{draw_architecture(job.search())}")

    return _with_job("search", arguments, steps)


def _train(arguments: Sequence[str]) -> int:
    def add(parser: ArgumentParser) -> None:
        parser.add_argument(
            "--architecture", type=str, required=True, help="an architecture.json file"
        )

    def steps(job: Any, path: str) -> dict[str, Any]:
        from dsonas.pipeline import load_architecture

        return job.train(load_architecture(path))

    return _with_job("train", arguments, steps, add, "architecture")


def _evaluate(arguments: Sequence[str]) -> int:
    from dsonas.pipeline import evaluate_run

    parser = _parser("evaluate", "Measure a finished run on the test images of its data set.")
    parser.add_argument("--run", type=str, required=True, help="the folder of a finished run")
    values = parser.parse_args(list(arguments))
    folder, config = _finished(values.run)
    measured = evaluate_run(folder, config)
    print(f"test error {measured['test_error']:.2f} %  test loss {measured['test_loss']:.4f}")
    return EXIT_DONE


def _predict(arguments: Sequence[str]) -> int:
    from dsonas.prediction import predict_images

    parser = _parser("predict", "Classify image files; prints file, class and probability.")
    parser.add_argument("--run", type=str, required=True, help="the folder of a finished run")
    parser.add_argument("images", nargs="+", type=str, help="image files, or folders of them")
    values = parser.parse_args(list(arguments))
    folder, _ = _finished(values.run)
    for name, label, probability in predict_images(folder, values.images):
        print(f"{name}\t{label}\t{probability:.4f}")
    return EXIT_DONE


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "run": _run,
    "search": _search,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
}


def _with_job(
    command: str,
    arguments: Sequence[str],
    steps: Callable[..., dict[str, Any] | None],
    add: Callable[[ArgumentParser], None] | None = None,
    extra: str | None = None,
) -> int:
    """Parse, claim the folder, and run the steps until done or interrupted."""
    from dsonas.console import Reporter
    from dsonas.loop import Interrupted
    from dsonas.pipeline import Job

    parser = _config_parser(command)
    if add:
        add(parser)
    values = parser.parse_args(_with_recipe_paths(arguments))
    folder = _claim(parser, values)
    with Reporter() as reporter:
        if command != "search" and folder.metrics:
            _summarise(folder.metrics, folder.path, reporter)
            return EXIT_DONE
        job = Job(_config(parser, values), folder, reporter, stop=_stop_flag(reporter))
        try:
            metrics = steps(job, values[extra]) if extra else steps(job)
        except Interrupted:
            reporter.say(f"interrupted; saved in {folder.path}; the same command resumes")
            return EXIT_INTERRUPTED
        if metrics:
            _summarise(metrics, folder.path, reporter)
        return EXIT_DONE


def _stop_flag(reporter: Any) -> Callable[[], bool]:
    """Turn SIGINT and SIGTERM into a request that the loop answers after its current step."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        reporter.say("stopping after this step; once more stops at once, without saving")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return lambda: bool(asked)


def _summarise(metrics: dict[str, Any], path: Path, reporter: Any) -> None:
    from dsonas.console import readable_count

    reporter.say(
        f"\ntest error {metrics['test_error']:.2f} %  with {readable_count(metrics['macs'])} "
        f"multiply-adds, {readable_count(metrics['params'])} parameters, "
        f"{metrics['live_connections']} of {metrics['supernet_connections']} connections\n"
        f"search {metrics['search_seconds']:.0f} s, training {metrics['train_seconds']:.0f} s; "
        f"everything is in {path}"
    )


def _parser(command: str, description: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser

    class OneLineErrors(ArgumentParser):
        """Errors are one line and exit code 2."""

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
            sys.exit(_complain(message))

    return OneLineErrors(prog=f"dsonas {command}", description=description)


def _config_parser(command: str) -> ArgumentParser:
    from dataclasses import fields

    from dsonas.config import RunConfig

    parser = _parser(command, f"dsonas {command}: every option has a default that works.")
    parser.add_argument(
        "--config", action="config", help="a recipe name, or a YAML file of these options"
    )
    parser.add_argument("--out", type=str, default=None, help="run folder (default runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="accepted; resuming is automatic")
    parser.add_argument("--seed", type=int, default=0, help="fixes every random choice")
    groups = RunConfig()
    for entry in fields(RunConfig):
        if entry.name != "seed":
            parser.add_class_arguments(type(getattr(groups, entry.name)), entry.name)
    return parser


def _with_recipe_paths(arguments: Sequence[str]) -> list[str]:
    """Replace the name of a recipe after ``--config`` by the path of its file."""
    found = list(arguments)
    for i, argument in enumerate(found):
        name = argument.removeprefix("--config=") if argument.startswith("--config=") else None
        if argument == "--config" and i + 1 < len(found):
            found[i + 1] = _recipe_path(found[i + 1])
        elif name is not None:
            found[i] = f"--config={_recipe_path(name)}"
    return found


def _recipe_path(name: str) -> str:
    if Path(name).exists():
        return name
    if name not in recipe_names():
        raise ValueError(
            f"--config must be a file or one of {', '.join(recipe_names())}, got {name!r}"
        )
    return str(files("dsonas").joinpath("recipes", f"{name}.yaml"))


def _config(parser: ArgumentParser, values: Namespace) -> RunConfig:
    from dataclasses import fields

    from dsonas.config import RunConfig

    objects = parser.instantiate_classes(values)
    return RunConfig(**{entry.name: objects[entry.name] for entry in fields(RunConfig)})


def _claim(parser: ArgumentParser, values: Namespace) -> Any:
    """The run folder, refused if it holds a run with other settings."""
    from dsonas.runs import RunFolder

    _config(parser, values)
    out = values.out or f"runs/{_default_name(values)}"
    values = values.clone()
    for name in ("config", "out", "resume"):
        values.pop(name, None)
    folder = RunFolder(out)
    existing = folder.path / "config.yaml"
    differences = []
    if existing.exists():
        before = _parser_values(existing)
        after = _flat(values)
        ignored = ("engine.", "data.workers")
        differences = [
            f"{key} was {before.get(key)!r} and is {after.get(key)!r}"
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key) and not key.startswith(ignored)
        ]
    text = parser.dump(values, skip_none=False, skip_validation=True)
    folder.claim(text, differences)
    return folder


def _parser_values(path: Path) -> dict[str, Any]:
    import yaml

    return _flatten(yaml.safe_load(path.read_text()))


def _flat(values: Namespace) -> dict[str, Any]:
    import yaml

    return _flatten(yaml.safe_load(yaml.safe_dump(_plain(values.as_dict()))))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in (value or {}).items():
        if isinstance(item, dict):
            flat.update(_flatten(item, f"{prefix}{key}."))
        else:
            flat[prefix + key] = item
    return flat


def _default_name(values: Namespace) -> str:
    if values.config:
        return Path(str(values.config[-1])).stem
    return Path(values.data.path or values.data.name.removeprefix("folder:")).name or "images"


def _finished(path: str) -> tuple[Any, RunConfig]:
    """The folder and configuration of a run."""
    from dsonas.runs import RunError, RunFolder

    folder = RunFolder(path)
    config_path = folder.path / "config.yaml"
    if not config_path.exists():
        raise RunError(f"--run must be the folder of a run, got {path}: it has no config.yaml")
    parser = _config_parser("evaluate")
    return folder, _config(parser, parser.parse_args([f"--config={config_path}"]))
