"""`dsonas compare`: the study of searched, random and hand-made networks, and its single jobs."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path

from jsonargparse import Namespace
from rich.console import Console

from dsonas._utils import write_atomically
from dsonas.commands.charts import ReportError
from dsonas.commands.comparison.jobs import JobsConfig, Pool, read_json, to_json
from dsonas.commands.comparison.results import comparison, markdown, svg
from dsonas.commands.comparison.single_job import begin, do_job, read_task
from dsonas.commands.comparison.study import Study, StudyConfig
from dsonas.commands.configuring import (
    GROUPS,
    IMPORT,
    OptionParser,
    config_parser,
    parse,
    run_name,
    stored_config,
    to_config,
    to_yaml,
    user_code,
)
from dsonas.cost import Budget
from dsonas.run import (
    Job,
    Reporter,
    RunError,
    RunFolder,
    StopSignal,
    changed_settings,
    readable_count,
)

DESCRIPTION = (
    "Compare searched networks with random ones, a random search of equal cost and plain hand-made "
    "ones, all trained alike; writes compare.json, compare.md and compare.svg. A study is many "
    "jobs, each a process with one thread. The same command on the same folder resumes."
)
_OPTIONS = {
    "--budgets": (str, "A,B,...",
                  "bounds on the multiply-adds, such as 1M,3M (default --budget.macs)"),
    "--spaces": (str, "A,B", "share, full or both: share,full (default that of --search.space)"),
    "--hand_made": (int, "N", "trainings of each hand-made network (default as many as searches)"),
    "--trial_epochs": (int, "N",
                       "epochs of a random search's trials (default 1/5 of train.epochs)"),
    "--jobs.number --processes": (int, "N", "jobs at a time (default one for each core)"),
    "--jobs.backend": (str, "NAME", "loky, this machine, or ray or dask, a cluster (default loky)"),
    "--jobs.address": (str, "ADDRESS",
                       "of the cluster (default RAY_ADDRESS or DASK_SCHEDULER_ADDRESS)"),
    "--job": (str, "NAME",
              "do one job of the study in --out, in this process; a study calls this"),
}  # fmt: skip
_COUNTS = ("seeds", "train_seeds", "random", "random_factors", "random_searches", "held_out")


def compare(command: str, arguments: list[str], stop: StopSignal) -> int:
    """Run a study, or one of its jobs, in a folder until done or interrupted."""
    values = parse(_parser(command), arguments)
    path = Path(values.out or f"runs/compare-{run_name(values)}").absolute()
    code = [f"{IMPORT}={file}" for file in values.get("import") or ()]  # a file never runs any
    if ".py:" in values.data.augment:
        code.append(f"--data.augment={values.data.augment}")
    if values.job:
        task = read_task(path, values.job)
        return do_job(path, task, stored_config(path, resumes=True)[0], code, stop)
    jobs = JobsConfig(**{key: value for key, value in values.jobs.items() if value is not None})
    folder, config = RunFolder(path), _study_config(values)
    folder.require_kind("study")
    job = Job(config.run, folder, Reporter())
    for budget in config.budgets:  # every check of a run, with the batches that a run takes
        job.config = replace(job.config, budget=budget)
        job.check()
    run = replace(job.config, budget=config.run.budget)
    study, split = Study(replace(config, run=run), job.data), job.data.split
    if values.dry_run:
        for kind in (*dict.fromkeys(unit.kind for unit in study.units), "all"):
            works = [unit.work for unit in study.units if kind in (unit.kind, "all")]
            total = readable_count(sum(works))
            print(f"{kind:<7} {len(works):>4} jobs  {total} counted multiply-adds")
        return 0
    with folder.lock():
        folder.require_images(split)
        _refuse_other_study(folder, study.config, user_code(values))
        if split is not None:
            folder.write("split.csv", split.to_csv())
        return _do_study(study, path, jobs, code, stop)


def _do_study(study: Study, path: Path, jobs: JobsConfig, code: list[str], stop: StopSignal) -> int:
    console = Console(highlight=False, soft_wrap=True)
    begin(path, study, to_yaml(study.config.run.groups()))
    stop.wait_for_step()
    # how Python starts this program; a user's script registers its own operations
    script = Path(sys.argv[0])
    own = script.suffix == ".py" and script.name != "__main__.py"
    program = [str(script.absolute())] if own else ["-m", "dsonas"]

    def say(text: str) -> None:
        console.print(text, markup=False)

    command = [*program, "compare", *code, "--out", str(path), "--job"]
    pool = Pool(study.units, path, command, jobs, say)
    interrupted = pool.run(stop)
    value = comparison(study, path, pool.failed)
    if value["networks"]:
        page, written = markdown(value), "compare.json, compare.md"
        write_atomically(path / "compare.json", to_json(value))
        write_atomically(path / "compare.md", page.encode())
        try:
            write_atomically(path / "compare.svg", svg(value).encode())
            written += ", compare.svg"
        except ReportError as error:
            say(f"no compare.svg: {error}")
        say(f"\n{page}\n{path}/{written}")
    if interrupted:
        say(f"interrupted; {path} keeps all that is done; the same command resumes")
        return stop.exit_code
    if pool.failed:
        name, reason = next(iter(pool.failed.items()))
        raise RunError(
            f"{len(pool.failed)} of {len(study.units)} jobs failed, first {name} ({reason}): see "
            f"{path}/jobs/{name}/output.txt; the same command tries them again"
        )
    return 0


def _parser(command: str) -> OptionParser:
    parser = config_parser(command, DESCRIPTION, GROUPS)
    for names, (kind, metavar, text) in _OPTIONS.items():
        parser.add_argument(*names.split(), type=kind, default=None, metavar=metavar, help=text)
    others: set[int | str] = {one.name for one in fields(StudyConfig) if one.name not in _COUNTS}
    parser.add_class_arguments(StudyConfig, skip=others, as_group=False)
    for action in parser._actions:
        if action.dest in _COUNTS:
            action.metavar = "X" if action.dest == "held_out" else "N"
    text = "print the jobs and their counted cost, and end"
    parser.add_argument("--dry_run", action="store_true", help=text)
    return parser


def _study_config(values: Namespace) -> StudyConfig:
    """What to compare; every job has one thread."""
    run = to_config(values)
    run.require_blocks()
    budgets = [run.budget]
    if values.budgets is not None:
        budgets = [replace(run.budget, macs=text) for text in values.budgets.split(",")]
    fifth = max(1, run.train.epochs // 5)
    return StudyConfig(
        run=replace(run, budget=Budget(), engine=replace(run.engine, threads=1)),
        budgets=tuple(budgets),
        spaces=tuple(one.strip() for one in (values.spaces or run.search.space).split(",")),
        hand_made=values.seeds if values.hand_made is None else values.hand_made,
        trial_epochs=fifth if values.trial_epochs is None else values.trial_epochs,
        **{name: values[name] for name in _COUNTS},
    )


def _refuse_other_study(folder: RunFolder, config: StudyConfig, code: dict[str, str]) -> None:
    """Refuse to go on with a study that means something else by the same job."""
    path = folder.path
    fixed = {
        "trial_epochs": config.trial_epochs,
        "held_out": config.held_out,
        "leading_measure": config.budgets[0].leading,  # of the plan of a search
    }
    if (path / "config.yaml").exists():
        stored = read_json(path / "study.json") if (path / "study.json").exists() else {}
        before = {**stored_config(path, resumes=True)[0].settings(), **fixed, **stored}
        after = {**config.run.settings(), **fixed}
        folder.refuse(changed_settings(before, after, "train"))
        folder.require_code(code)
    folder.write_code(code)
    write_atomically(path / "study.json", to_json(fixed))
