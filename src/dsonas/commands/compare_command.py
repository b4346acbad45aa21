"""`dsonas compare`: the study of searched, random and hand-made networks, and its single jobs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from dsonas._utils import write_atomically
from dsonas.commands.charts import ReportError
from dsonas.commands.comparison.plot import svg
from dsonas.commands.comparison.pool import Event, Pool
from dsonas.commands.comparison.progress import Progress
from dsonas.commands.comparison.random_search import run_ranking, run_trial
from dsonas.commands.comparison.results import comparison
from dsonas.commands.comparison.study import Study, StudyConfig
from dsonas.commands.comparison.study_folder import StudyFolder, check_same, read_json, to_json
from dsonas.commands.comparison.table import markdown
from dsonas.commands.comparison.units import Unit, study_units
from dsonas.commands.configuring import (
    GROUPS,
    OptionParser,
    UsageError,
    config_parser,
    parse,
    to_config,
    to_yaml,
)
from dsonas.commands.importing import OPTION as IMPORT
from dsonas.cost import Budget
from dsonas.data import ImageData, short_name
from dsonas.run import (
    Job,
    Reporter,
    RunConfig,
    RunError,
    RunFolder,
    StopSignal,
    changed_settings,
    readable_count,
)
from dsonas.train import Interrupted

DESCRIPTION = (
    "Compare searched networks with random ones, a random search of equal cost and plain\n"
    "hand-made ones, all trained alike; writes compare.json, compare.md and compare.svg. A study\n"
    "is many jobs, each a process with one thread. The same command on the same folder resumes."
)
_NUMBERS = {
    "seeds": (3, "searches of each space"),
    "train_seeds": (2, "trainings of each architecture that a search or a random search found"),
    "random": (8, "random architectures of each space, each trained once at each budget"),
    "random_factors": (8, "networks of the search's plan with random scaling factors, the same"),
    "random_searches": (1, "random searches of each space and budget"),
    "hand_made": (None, "trainings of each hand-made network (default as many as searches)"),
    "trial_epochs": (None, "epochs of a random search's trials (default a fifth of train.epochs)"),
    "processes": (None, "jobs at a time (default one for each core)"),
}


def compare(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Run a study, or one of its jobs, in a folder until done or interrupted."""
    values = parse(_parser(command), arguments)
    path = Path(values.out or f"runs/compare-{_name(values)}")
    if values.job:
        return _do_job(path, values.job, stop)
    config = _study_config(values)
    processes = _whole(values, "processes", _cores())
    study = Study(config, _checked_data(config, path))
    if values.dry_run:
        print("\n".join(_plan(study_units(study))))
        return 0
    folder = StudyFolder(path, study, _program(), _imports(arguments))
    return _do_study(folder, processes, stop)


def _do_study(folder: StudyFolder, processes: int, stop: StopSignal) -> int:
    path, study = folder.path, folder.study
    units, console = study_units(study), Console(highlight=False, soft_wrap=True)
    _refuse_other_study(path, study.config)
    folder.begin(to_yaml(study.config.run.groups()))
    write_atomically(path / "study.json", to_json(_fixed(study.config)))
    stop.wait_for_step()
    pool = _work_off(folder, units, processes, stop, console)
    _write(folder, units, pool.failed, console)
    if pool.stopping:
        console.print(f"interrupted; {path} keeps all that is done; the same command resumes")
        return stop.exit_code
    if pool.failed:
        name, reason = next(iter(pool.failed.items()))
        raise RunError(
            f"{len(pool.failed)} of {len(units)} jobs failed, first {name} ({reason}): see "
            f"{path}/jobs/{name}/output.txt; the same command tries them again"
        )
    return 0


def _parser(command: str) -> OptionParser:
    parser = config_parser(command, DESCRIPTION, GROUPS)
    for name, (default, text) in _NUMBERS.items():
        shown = text if default is None else f"{text} (default {default})"
        # texts, so that a wrong one is refused in the words of this command
        parser.add_argument(f"--{name}", type=str, default=None, metavar="N", help=shown)
    add = parser.add_argument
    add(
        "--held_out",
        type=str,
        default="0.1",
        metavar="X",
        help="share of the training images by which a random search chooses (default 0.1)",
    )
    add(
        "--budgets",
        type=str,
        default=None,
        metavar="A,B,...",
        help="bounds on the multiply-adds, such as 1M,3M (default: that of --budget.macs)",
    )
    add(
        "--spaces",
        type=str,
        default=None,
        metavar="A,B",
        help="share, full or both (default: that of --search.space)",
    )
    add("--dry_run", action="store_true", help="print the jobs and their counted cost, and end")
    add(
        "--job",
        type=str,
        default=None,
        metavar="NAME",
        help="do one job of the study in --out, in this process; a study itself calls this",
    )
    return parser  # fmt: skip


def _name(values: Namespace) -> str:
    if values.config:
        return Path(str(values.config[-1])).stem
    return short_name(values.data.name)


def _whole(values: Namespace, name: str, otherwise: int | None = None) -> Any:
    text = values[name]
    if text is None:
        default = _NUMBERS[name][0]
        return otherwise if default is None else default
    if not text.isdecimal():
        raise UsageError(f"{name} must be a whole number, got {text!r}: see --help")
    if name == "processes" and int(text) < 1:
        raise UsageError(f"processes must be at least 1, got {text}")
    return int(text)


def _cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _study_config(values: Namespace) -> StudyConfig:
    """What to compare; every run measures the test images once, in one thread."""
    run = to_config(values)
    budgets = [run.budget]
    if values.budgets:
        budgets = [replace(run.budget, macs=text) for text in values.budgets.split(",")]
    spaces = values.spaces.split(",") if values.spaces else [run.search.space]
    try:
        held_out = float(values.held_out)
    except ValueError:
        raise UsageError(f"held_out must be a number, got {values.held_out!r}") from None
    return StudyConfig(
        run=replace(
            run,
            budget=Budget(),
            train=replace(run.train, evaluate_every=run.train.epochs),
            engine=replace(run.engine, threads=1),
        ),
        budgets=tuple(budgets),
        spaces=tuple(spaces),
        seeds=_whole(values, "seeds"),
        train_seeds=_whole(values, "train_seeds"),
        random=_whole(values, "random"),
        random_factors=_whole(values, "random_factors"),
        random_searches=_whole(values, "random_searches"),
        hand_made=_whole(values, "hand_made", _whole(values, "seeds")),
        trial_epochs=_whole(values, "trial_epochs", max(1, run.train.epochs // 5)),
        held_out=held_out,
    )


def _checked_data(config: StudyConfig, path: Path) -> ImageData:
    """The data, after every check that a run makes before its work."""
    job = Job(config.run, RunFolder(path), Reporter())
    for budget in config.budgets:
        job.config = replace(config.run, budget=budget)
        job.check()
    return job.data


def _program() -> list[str]:
    """How to start this program again; a user's script registers its own operations."""
    script = Path(sys.argv[0])
    own = script.suffix == ".py" and script.name != "__main__.py"
    return [sys.executable, *([str(script)] if own else ["-m", "dsonas"])]


def _imports(arguments: Sequence[str]) -> list[str]:
    """The options that import own operations, for the jobs."""
    found: list[str] = []
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option == IMPORT:
            found += [option, value]
        elif option.startswith(f"{IMPORT}="):
            found.append(option)
    return found


def _fixed(config: StudyConfig) -> dict[str, Any]:
    """What may not change from one command on a folder to the next, besides the run."""
    return {"trial_epochs": config.trial_epochs, "held_out": config.held_out}


def _refuse_other_study(path: Path, config: StudyConfig) -> None:
    if not (path / "config.yaml").exists():
        return
    before, after = _stored_run(path).settings(), config.run.settings()
    RunFolder(path).refuse(changed_settings(before, after, "train"))
    if (path / "study.json").exists():
        check_same(read_json(path / "study.json"), _fixed(config), path)


def _stored_run(path: Path) -> RunConfig:
    return to_config(parse(config_parser("run", "", ()), ["--config", str(path / "config.yaml")]))


def _plan(units: Sequence[Unit]) -> Iterator[str]:
    for kind in dict.fromkeys(unit.kind for unit in units):
        group = [unit for unit in units if unit.kind == kind]
        work = readable_count(sum(unit.work for unit in group))
        yield f"{kind:<7} {len(group):>4} jobs  {work} counted multiply-adds"
    work = readable_count(sum(unit.work for unit in units))
    yield f"{'all':<7} {len(units):>4} jobs  {work} counted multiply-adds"


def _work_off(
    folder: StudyFolder, units: Sequence[Unit], processes: int, stop: StopSignal, console: Console
) -> Pool:
    pending = [unit for unit in units if not folder.is_done(unit)]
    console.print(
        f"{len(units)} jobs, {len(units) - len(pending)} of them done, {processes} at a time, "
        f"in {folder.path}"
    )
    progress = Progress(units, pending, processes)

    def report(event: Event) -> None:
        console.print(progress.line(event, folder.result(event.unit) or {}), markup=False)

    pool = Pool(units, folder, processes=processes, stop=stop, report=report)
    pool.run()
    return pool


def _write(
    folder: StudyFolder, units: Sequence[Unit], failed: dict[str, str], console: Console
) -> None:
    value = comparison(folder, units, failed)
    if not value["networks"]:
        return
    page = markdown(value)
    write_atomically(folder.path / "compare.json", to_json(value))
    write_atomically(folder.path / "compare.md", page.encode())
    try:
        write_atomically(folder.path / "compare.svg", svg(value).encode())
    except ReportError as error:
        console.print(f"no compare.svg: {error}", markup=False)
    console.print(f"\n{page}\n{folder.path}/compare.json, compare.md, compare.svg", markup=False)


def _do_job(path: Path, name: str, stop: StopSignal) -> int:
    """A trial or a ranking; searches and trainings are commands of their own."""
    folder = path / "jobs" / Path(name).name
    if not (folder / "task.json").exists():
        raise RunError(f"{path} has no trial or ranking {name!r}: give the folder of a study")
    task, config = read_json(folder / "task.json"), _stored_run(path)
    if task["kind"] == "rank":
        run_ranking(config, task, folder)
        return 0
    stop.wait_for_step()
    try:
        run_trial(config, task, folder, stop)
    except Interrupted:
        return stop.exit_code
    return 0
