"""What each command of the command line does, from its arguments to its exit code."""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from dsonas._utils import STAGES, PositiveInt, absolute_path, absolute_place
from dsonas.commands.check_command import check
from dsonas.commands.compare_command import compare
from dsonas.commands.configuring import (
    SUBJECTS,
    OptionParser,
    UsageError,
    add_groups,
    config_parser,
    parse,
    run_name,
    stored_config,
    to_config,
    to_yaml,
)
from dsonas.commands.export_command import export
from dsonas.commands.latency_command import latency
from dsonas.commands.pareto import Front, add_front_options, asked_front, check_front
from dsonas.commands.plan_command import plan
from dsonas.commands.report import write_run_report
from dsonas.commands.report_command import report
from dsonas.commands.shards_command import shards
from dsonas.cost import Budget, exact_measures, is_chain
from dsonas.data import DataConfig, plain_name
from dsonas.graph import Architecture, draw_architecture
from dsonas.run import (
    COMPRESSED_FILE,
    ChoiceJob,
    CompressJob,
    Job,
    Prediction,
    Reporter,
    RunConfig,
    RunFolder,
    StopSignal,
    Tracking,
    changed_settings,
    evaluate_run,
    fit_to_budget,
    load_chain,
    predict_images,
    readable_count,
    transferred,
)
from dsonas.search import EPOCHS, FACTOR_LR
from dsonas.train import DivergedError, Interrupted, current_world, require_single

DESCRIPTIONS = {
    "run": "The whole job: pretrain and search the supernet, fit the width to the budget, train\n"
    "and measure the network found. The same command on the same folder resumes.",
    "search": "Steps 1 and 2: pretrain the supernet and search it; writes architecture.json.\n"
    "The same command on the same folder resumes.",
    "train": "Step 3: train and measure the network of an architecture file, or that of the\n"
    "chain.json of a search which suits the budget. With --network.transfer true its block is put\n"
    "into the network that the network options describe (recipe imagenet-transfer). Other options\n"
    "of the other steps are accepted and not used, so that a whole configuration can be given.",
    "compress": "Bring a trained model to a budget: search its branches and channels while its\n"
    "weights train on, then train what is left. The same command on the same folder resumes.\n"
    "Needs torch-pruning: pip install dsonas[compress].",
    "evaluate": "Measure the network of a finished run on its test images. The options say where\n"
    "the data are now and where to compute; they default to those of the run.",
    "predict": "Classify image files; prints file, class and probability, separated by tabs.\n"
    "Files that cannot be read are named on stderr with the reason, with --json and --csv there\n"
    "too, and the others go on.",
}
STEPS = {
    "run": STAGES,
    "search": STAGES[:2],
    "train": STAGES[2:],
    "compress": STAGES[1:],
}
GROUPS = {
    "run": ("data", "network", "pretrain", "search", "budget", "train", "engine", "log"),
    "search": ("data", "network", "pretrain", "search", "budget", "engine", "log"),
    "train": ("data", "budget", "train", "engine", "log"),
    "compress": ("data", "search", "budget", "train", "engine", "log"),
}
COMPRESSED_LR = 0.05  # of the training of a compressed model
_MEASURING = (
    "data.name", "data.labels", "data.workers", "data.max_test_images",
    "engine.device", "engine.precision", "engine.threads",
)  # fmt: skip
_PARTS = ("data.test", "data.val")  # places of them are used, shares are not: nothing is held out
EXIT_DONE = 0


def work(
    command: str, arguments: list[str], stop: StopSignal, study: RunFolder | None = None
) -> int:
    """Search or train: do the steps in a run folder until done or interrupted.

    A job of a study must have the images of the study.
    """
    values = parse(_work_parser(command), arguments)
    with _folder(values).lock() as folder:
        return _work_in(folder, command, arguments, values, stop, study)


def _work_in(
    folder: RunFolder,
    command: str,
    arguments: list[str],
    values: Namespace,
    stop: StopSignal,
    study: RunFolder | None = None,
) -> int:
    folder.require_kind("run")
    config, subjects = to_config(values), _subjects(values)
    path, compresses = subjects["architecture"], command == "compress"
    if compresses:
        config = _of_trained_model(config)
    front = asked_front(values)
    transfers, own = config.network.transfer, config.network.supernet
    if own and (path or transfers):
        raise UsageError(
            f"network.supernet {own} goes neither with dsonas train, which takes architectures of "
            "our blocks, nor with network.transfer: dsonas run trains what a search of it has found"
        )
    if transfers and not path:
        raise UsageError("network.transfer needs a block: use dsonas train --architecture FILE")
    architecture = _given_architecture(path, config, folder) if path else None
    stored = _refuse_other_run(folder, config, subjects)
    if architecture and not transfers:
        folder.require_architecture(architecture)
    # of several processes only the one that writes may speak
    with Reporter(silent=not folder.writes) as reporter:
        refit = stored is not None and stored.budget != config.budget and not own
        refit = refit and not compresses
        if not refit and _is_finished(command, folder, reporter):
            Tracking(config, folder, writes=folder.writes).complete()
            return EXIT_DONE
        job = _job(config, folder, reporter, stop, subjects)
        if study is not None:
            study.require_images(job.data.split)
        if architecture and transfers:
            architecture = transferred(architecture, config, job.data, job.measures, folder.held)
            folder.require_architecture(architecture)
        job.check(STEPS[command], architecture)
        check_front(front, job)
        extra = {name: value for name, value in subjects.items() if value}
        folder.begin(to_yaml({**extra, **config.groups()}), searches=not path, refits=refit)
        job.write_split()
        stop.wait_for_step()
        try:
            with job.tracking:
                _do_steps(command, job, architecture)
        except Interrupted:
            _say_interrupted(command, arguments, folder, reporter)
            return stop.exit_code
        except DivergedError as error:
            folder.checkpoints.forget(error.stage)
            raise
    return EXIT_DONE


def _subjects(values: Namespace) -> dict[str, str | None]:
    """What the command trains, with paths that are found from every folder."""
    given = {name: values.get(name) for name in SUBJECTS}
    for name, value in given.items():
        if value and name != "model":
            given[name] = absolute_path(value)
        elif value and ".py:" in value:
            given[name] = absolute_place(value)
    return given


def _of_trained_model(config: RunConfig) -> RunConfig:
    """Leave out step 1, which a trained model does not need; refuse what is not for one."""
    if config.network.supernet or config.network.transfer:
        raise UsageError("network.supernet and network.transfer are not for dsonas compress")
    if not config.budget.given:
        raise UsageError("dsonas compress needs a budget: give --budget.macs 50%, say")
    return replace(config, pretrain=replace(config.pretrain, epochs=0))


def _job(
    config: RunConfig,
    folder: RunFolder,
    reporter: Reporter,
    stop: StopSignal,
    subjects: dict[str, str | None],
) -> Job:
    given = config, folder, reporter, stop, current_world()
    if subjects["model"]:
        return CompressJob(*given, place=subjects["model"], weights=subjects["weights"])
    return (ChoiceJob if config.network.supernet else Job)(*given)


def _given_architecture(path: str, config: RunConfig, folder: RunFolder) -> Architecture:
    """The architecture of a file; of a chain, the member that suits the budget."""
    chain = load_chain(path)
    if config.network.transfer:
        return chain[-1].clean()
    if not is_chain(Path(path).read_text(encoding="utf-8")):
        _refuse_beyond(config.budget, chain[-1], path)
        return chain[-1].clean()
    if folder.begun is not None and folder.held is not None:
        stored, subjects = stored_config(folder.path, resumes=True)
        if (subjects["architecture"], stored.budget) == (path, config.budget):
            return folder.held  # a latency measured again would lead to another width
    return fit_to_budget(chain, config)


def _refuse_beyond(budget: Budget, architecture: Architecture, path: str) -> None:
    """Refuse an architecture that costs more than a bound; latencies differ each time."""
    measures = exact_measures()
    for name, bound in budget.bounds.items():
        if name in measures and (cost := measures[name](architecture)) > bound:
            raise UsageError(
                f"budget.{name} must be at least {cost:.0f}, what {path} costs, got {bound:.0f}: "
                "give the chain.json beside it, of which a member is brought to the budget, or "
                f"--budget.{name} null"
            )


def _folder(values: Namespace) -> RunFolder:
    path = values.out or f"runs/{run_name(values)}"
    return RunFolder(path, writes=current_world().is_first)


def _run(command: str, arguments: list[str], stop: StopSignal) -> int:
    """The whole job, and then the other networks of a front if one is asked for."""
    values = parse(_work_parser(command), arguments)
    if asked_front(values):
        require_single("--pareto", current_world())
    with _folder(values).lock() as folder:
        code = _work_in(folder, command, arguments, values, stop)
        front = asked_front(values)
        if code != EXIT_DONE or front is None:
            return code
        stop.wait_for_step()
        with Reporter() as reporter:
            try:
                Front(front, to_config(values), folder, reporter, stop).train()
            except Interrupted:
                _say_interrupted(command, arguments, folder, reporter)
                return stop.exit_code
    return EXIT_DONE


def _say_interrupted(
    command: str, arguments: list[str], folder: RunFolder, reporter: Reporter
) -> None:
    again = shlex.join(["dsonas", command, *arguments])
    reporter.say(f"interrupted; all is saved in {folder.path}; resume with: {again}")


def _do_steps(command: str, job: Job, architecture: Architecture | None) -> None:
    found = architecture or job.search()
    if command == "search":
        job.reporter.say(f"\n{job.drawn(found)}\n\neverything is in {job.folder.path}")
    else:
        _summarise(job.train(found), job.folder.path, job.reporter)
    if job.folder.writes:
        write_run_report(job.folder.path, job.data, job.reporter.say, job.outcome)


def _is_finished(command: str, folder: RunFolder, reporter: Reporter) -> bool:
    """Whether there is nothing left to do; if so, says what the folder holds."""
    if command == "search" and folder.found:
        reporter.say(f"the search in {folder.path} is finished:\n")
        reporter.say(draw_architecture(folder.found))
        return True
    if command != "search" and (summary := folder.summary):
        reporter.say(f"the run in {folder.path} is finished:")
        _summarise(summary, folder.path, reporter)
        return True
    return False


def _summarise(metrics: dict[str, Any], path: Path, reporter: Reporter) -> None:
    # older runs have none
    beside = f"{_beside(metrics)}\n" if "balanced_accuracy" in metrics else ""
    compressed = (path / COMPRESSED_FILE).exists()
    unit = "branches and channels" if compressed else "candidates"
    unit = "connections" if "channels" in metrics else unit
    reporter.say(
        f"\ntest error {metrics['test_error']:.2f} %  with {readable_count(metrics['macs'])} "
        f"multiply-adds, {readable_count(metrics['params'])} parameters, "
        f"{metrics['live_connections']} of {metrics['supernet_connections']} "
        f"{unit}\n{beside}"
        f"search {metrics['search_seconds']:.0f} s, training {metrics['train_seconds']:.0f} s; "
        f"everything is in {path}"
    )


def _beside(measured: dict[str, Any]) -> str:
    """What an error is worth where classes differ in size."""
    return (
        f"balanced accuracy {100 * measured['balanced_accuracy']:.2f} %, and "
        f"{100 * (1 - measured['majority_rate']):.2f} % error if it always said the largest class"
    )


def _work_parser(command: str) -> OptionParser:
    parser = config_parser(command, DESCRIPTIONS[command], GROUPS[command])
    if command == "train":
        text = "the architecture.json, or chain.json with a budget, to train; required"
        parser.add_argument("--architecture", type=str, required=True, metavar="FILE", help=text)
    if command == "run":
        add_front_options(parser)
    if command == "compress":
        add = parser.add_argument
        add(
            "--model",
            type=str,
            required=True,
            metavar="NAME",
            help="torchvision:NAME, timm:NAME, or FILE.py:FUNCTION of your own, which returns a "
            "model, given num_classes, in_channels, image_size if it takes them; required",
        )
        add("--weights", type=str, default=None, metavar="FILE",
            help="its state_dict: .safetensors, or as torch.save writes it; may be left out only "
            "if FUNCTION gives a trained model")  # fmt: skip
        parser.set_defaults(
            {"search.epochs": EPOCHS, "search.lr": FACTOR_LR, "train.lr": COMPRESSED_LR}
        )
    return parser


def _refuse_other_run(
    folder: RunFolder, config: RunConfig, subjects: dict[str, str | None]
) -> RunConfig | None:
    """Refuse to mix two runs; returns the configuration of the one that the folder holds."""
    if folder.begun is None:
        return None
    stored, stored_subjects = stored_config(folder.path, resumes=True)
    before = {**_compared(stored), **stored_subjects}
    after = {**_compared(config), **subjects}
    folder.refuse(changed_settings(before, after, folder.begun))
    return stored


def _compared(config: RunConfig) -> dict[str, Any]:
    return {**config.settings(), "budget.bounds": config.budget.given}


def _evaluate(command: str, arguments: list[str], stop: StopSignal) -> int:
    parser = OptionParser(command, "--run DIR [--json] [OPTIONS]", DESCRIPTIONS[command])
    _add_run_folder(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_groups(parser, ("data", "engine"), (*_MEASURING, *_PARTS))
    first = parse(parser, arguments)
    folder = RunFolder(first.run)
    stored, _ = stored_config(folder.path)
    settings = stored.settings().items()
    parser.set_defaults({k: v for k, v in settings if k.split(".")[0] in ("data", "engine")})
    config = to_config(parse(parser, arguments), seed=stored.seed)
    if config.data.name != stored.data.name:  # where its parts are the run does not know
        given, names = to_config(first).data, ("labels", "test", "val")
        own = {name: getattr(given, name) for name in names}
        config = replace(config, data=replace(config.data, **own))
        default = {name: getattr(DataConfig, name) for name in names}
        stored = replace(stored, data=replace(stored.data, **default))
    _refuse_unused(config, stored, folder)
    measured = evaluate_run(folder, config)
    if first.json:
        print(json.dumps(measured))
    else:
        print(f"test error {measured['test_error']} %  test loss {measured['test_loss']}  "
              f"{_beside(measured)}  {measured['images']} images")  # fmt: skip
    return EXIT_DONE


def _refuse_unused(config: RunConfig, stored: RunConfig, folder: RunFolder) -> None:
    """Refuse options that change nothing in what is measured, unless they say what is so anyway."""
    network, before = folder.load_network(), stored.settings()
    own = network.preprocessing.settings(network.shape)
    for name, value in config.settings().items():
        if name.split(".")[0] not in ("data", "engine"):
            continue
        places = name in _PARTS and (isinstance(value, str) or value == 0)
        if name in _MEASURING or places or value in (before[name], own.get(name, before[name])):
            continue
        rule = f"{own[name]!r}, as the network has it" if name in own else "left out"
        raise UsageError(
            f"{name} must be {rule}, got {value!r}: a finished network is measured as it is; to "
            "measure other images than those of its run, give --data.name folder:PATH"
        )


def _predict(command: str, arguments: list[str], stop: StopSignal) -> int:
    parser = OptionParser(command, "--run DIR IMAGE... [OPTIONS]", DESCRIPTIONS[command])
    _add_run_folder(parser)
    add = parser.add_argument
    add("images", nargs="+", type=str, metavar="IMAGE",
        help="image files, folders of them, or - for names on standard input, one a line or each "
        "ended by a zero byte")  # fmt: skip
    add("--top", type=PositiveInt, default=1, metavar="N", help="the N most probable classes")
    add("--json", action="store_true", help="print a JSON list, an object for each image")
    add("--csv", action="store_true", help="print CSV with a header")
    add("--device", type=str, default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, auto, ...")
    values = parse(parser, arguments)
    if values.json and values.csv:
        raise UsageError("--json and --csv exclude each other: give one of them")
    paths = [name for path in values.images for name in (_listed() if path == "-" else [path])]
    found = predict_images(RunFolder(values.run), paths, top=values.top, device=values.device)
    printed = _print_json if values.json else _print_csv if values.csv else _print_lines
    printed(found, values.top)
    return EXIT_DONE


def _listed() -> list[str]:
    """The names on standard input."""
    text = os.fsdecode(sys.stdin.buffer.read())
    return [name for name in (text.split("\0") if "\0" in text else text.splitlines()) if name]


def _cells(classes: list[tuple[str, float]]) -> list[str]:
    return [cell for label, value in classes for cell in (label, f"{value:.4f}")]


def _print_lines(found: Iterator[Prediction], top: int) -> None:
    for file, classes, skipped in found:
        if not skipped:  # that is said on stderr
            print(*map(plain_name, (file, *_cells(classes))), sep="\t")


def _print_csv(found: Iterator[Prediction], top: int) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    first = [next(found)]
    while first[-1].skipped:  # one is readable, or that would have been an error
        first.append(next(found))
    count = len(first[-1].classes)
    columns = [f"{name}{end}" for end in ("", *(f"_{k}" for k in range(2, count + 1)))
               for name in ("class", "probability")]  # fmt: skip
    writer.writerow(["file", *columns, "skipped"])
    for file, classes, skipped in chain(first, found):
        cells = _cells(classes) or [""] * len(columns)
        writer.writerow([plain_name(file), *cells, skipped])


def _print_json(found: Iterator[Prediction], top: int) -> None:
    start = "["
    for file, classes, skipped in found:
        ranked = [{"class": label, "probability": round(value, 6)} for label, value in classes]
        item = {"skipped": skipped} if skipped else dict(ranked[0])
        item |= {"top": ranked} if top > 1 and ranked else {}
        print(start, json.dumps({"file": file, **item}), sep="\n ", end="")
        start = ","
    print("\n]")


def _add_run_folder(parser: OptionParser) -> None:
    text = "the folder of a finished run"
    parser.add_argument("--run", type=str, required=True, metavar="DIR", help=text)


COMMANDS: dict[str, Callable[[str, list[str], StopSignal], int]] = {
    "run": _run,
    "search": work,
    "train": work,
    "compress": work,
    "evaluate": _evaluate,
    "predict": _predict,
    "check": check,
    "compare": compare,
    "export": export,
    "report": report,
    "shards": shards,
    "plan": plan,
    "latency": latency,
}
