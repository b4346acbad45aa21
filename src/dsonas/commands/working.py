"""``dsonas run``, ``search``, ``train`` and ``compress``: the steps of a run in its folder."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from dsonas._utils import absolute_path, absolute_place
from dsonas.commands.configuring import (
    GROUPS,
    SUBJECTS,
    OptionParser,
    UsageError,
    config_parser,
    parse,
    run_name,
    stored_config,
    to_config,
    to_yaml,
    user_code,
)
from dsonas.commands.finished import beside
from dsonas.commands.pareto import Front, FrontConfig, add_front_options, asked_front, check_front
from dsonas.commands.report import write_run_report
from dsonas.cost import Budget, exact_measures, is_chain
from dsonas.graph import Architecture, draw_architecture
from dsonas.run import (
    COMPRESSED_FILE,
    Job,
    Reporter,
    RunConfig,
    RunFolder,
    StopSignal,
    Tracking,
    changed_settings,
    fit_to_budget,
    load_chain,
    readable_count,
    transferred,
)
from dsonas.search import EPOCHS, FACTOR_LR
from dsonas.train import STAGES, DivergedError, Interrupted, current_world, require_single

DESCRIPTIONS = {
    "run": "The whole job: pretrain and search the supernet, fit the width to the budget, train "
    "and measure the network found. The same command on the same folder resumes.",
    "search": "Steps 1 and 2: pretrain the supernet and search it; writes architecture.json. "
    "The same command on the same folder resumes.",
    "train": "Step 3: train and measure the network of an architecture file, or that of the "
    "chain.json of a search which suits the budget. With --network.transfer true its block is put "
    "into the network that the network options describe (recipe imagenet-transfer). Other options "
    "of the other steps are accepted and not used, so that a whole configuration can be given.",
    "compress": "Bring a trained model to a budget: search its branches and channels while its "
    "weights train on, then train what is left. The same command on the same folder resumes. "
    "Needs torch-pruning: pip install dsonas[compress].",
}
STEPS = {
    "run": STAGES,
    "search": STAGES[:2],
    "train": STAGES[2:],
    "compress": STAGES[1:],
}
NOT_SHOWN = {  # by the help, of the groups of options
    "run": (),
    "search": ("train",),
    "train": ("network", "pretrain", "search"),
    "compress": ("network", "pretrain"),
}
COMPRESSED_LR = 0.05  # of the training of a compressed model


def run(
    command: str, arguments: list[str], stop: StopSignal, study: RunFolder | None = None
) -> int:
    """Do the steps of a command in a run folder until done or interrupted; then those of a front.

    A job of a study must have the images of the study.
    """
    values = parse(_parser(command), arguments)
    config, front = to_config(values), asked_front(values)
    if command == "compress":
        config = _of_trained_model(config)
    if front:
        require_single("--pareto", current_world())
    path = values.out or f"runs/{run_name(values)}"
    with RunFolder(path, writes=current_world().is_first).lock() as folder:
        reporter = Reporter(silent=not folder.writes)  # only the process that writes may speak
        try:
            with reporter:
                subjects, code = _subjects(values), user_code(values)
                _work(command, config, subjects, code, front, folder, reporter, stop, study)
            if front:
                stop.wait_for_step()
                with Reporter() as reporter:
                    Front(front, config, folder, reporter, stop).train()
        except Interrupted:
            again = shlex.join(["dsonas", command, *arguments])
            reporter.say(f"interrupted; all is saved in {folder.path}; resume with: {again}")
            return stop.exit_code
    return 0


def _work(
    command: str,
    config: RunConfig,
    subjects: dict[str, str | None],
    code: dict[str, str],
    front: FrontConfig | None,
    folder: RunFolder,
    reporter: Reporter,
    stop: StopSignal,
    study: RunFolder | None,
) -> None:
    folder.require_kind("run")
    path, own = subjects["architecture"], config.network.supernet
    if own and (path or config.network.transfer):
        raise UsageError(
            f"network.supernet {own} goes neither with dsonas train, which takes architectures of "
            "our blocks, nor with network.transfer: dsonas run trains what a search of it has found"
        )
    if config.network.transfer and not path:
        raise UsageError("network.transfer needs a block: use dsonas train --architecture FILE")
    architecture = _given_architecture(path, config, folder) if path else None
    stored = _refuse_other_run(folder, config, subjects, code)
    if architecture and not config.network.transfer:
        folder.require_architecture(architecture)
    refits = stored is not None and stored.budget != config.budget
    refits = refits and not own and command != "compress"
    if not refits and _is_finished(command, folder, reporter):
        Tracking(config, folder, writes=folder.writes).complete()
        return
    given = config, folder, reporter, stop, current_world()
    if subjects["model"]:
        from dsonas.run import CompressJob  # a second, for this only

        job = CompressJob(*given, place=subjects["model"], weights=subjects["weights"])
    elif own:
        from dsonas.run import ChoiceJob

        job = ChoiceJob(*given)
    else:
        job = Job(*given)
    if study is not None:
        study.require_images(job.data.split)
    if architecture and config.network.transfer:
        architecture = transferred(architecture, config, job.data, job.measures, folder.held)
        folder.require_architecture(architecture)
    job.check(STEPS[command], architecture)
    check_front(front, job)
    known = {name: value for name, value in subjects.items() if value}
    folder.begin(to_yaml({**known, **config.groups()}), searches=not path, refits=refits)
    folder.write_code(code)
    job.write_split()
    stop.wait_for_step()
    try:
        with job.tracking:
            _do_steps(command, job, architecture)
    except DivergedError as error:
        folder.checkpoints.forget(error.stage)
        raise


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
    extra = f"{beside(metrics)}\n" if "balanced_accuracy" in metrics else ""
    compressed = (path / COMPRESSED_FILE).exists()
    unit = "branches and channels" if compressed else "candidates"
    unit = "connections" if "channels" in metrics else unit
    reporter.say(
        f"\ntest error {metrics['test_error']:.2f} %  with {readable_count(metrics['macs'])} "
        f"multiply-adds, {readable_count(metrics['params'])} parameters, "
        f"{metrics['live_connections']} of {metrics['supernet_connections']} "
        f"{unit}\n{extra}"
        f"search {metrics['search_seconds']:.0f} s, training {metrics['train_seconds']:.0f} s; "
        f"everything is in {path}"
    )


def _parser(command: str) -> OptionParser:
    shown = [name for name in GROUPS if name not in NOT_SHOWN[command]]
    parser = config_parser(command, DESCRIPTIONS[command], shown)
    if command == "train":
        text = "the architecture.json, or chain.json with a budget, to train; required"
        parser.add_argument("--architecture", type=str, required=True, metavar="FILE", help=text)
    if command == "run":
        add_front_options(parser)
    if command == "compress":
        text = (
            "torchvision:NAME, timm:NAME, or FILE.py:FUNCTION of your own, which returns a model, "
            "given num_classes, in_channels, image_size if it takes them; required"
        )
        parser.add_argument("--model", type=str, required=True, metavar="NAME", help=text)
        text = (
            "its state_dict: .safetensors, or as torch.save writes it; may be left out only if "
            "FUNCTION gives a trained model"
        )
        parser.add_argument("--weights", type=str, default=None, metavar="FILE", help=text)
        parser.set_defaults(
            {"search.epochs": EPOCHS, "search.lr": FACTOR_LR, "train.lr": COMPRESSED_LR}
        )
    return parser


def _refuse_other_run(
    folder: RunFolder, config: RunConfig, subjects: dict[str, str | None], code: dict[str, str]
) -> RunConfig | None:
    """Refuse to mix two runs; returns the configuration of the one that the folder holds."""
    if folder.begun is None:
        return None
    stored, stored_subjects = stored_config(folder.path, resumes=True)
    bounds = [{"budget.bounds": one.budget.given} for one in (stored, config)]
    before = {**stored.settings(), **bounds[0], **stored_subjects}
    after = {**config.settings(), **bounds[1], **subjects}
    folder.refuse(changed_settings(before, after, folder.begun))
    folder.require_code(code)
    return stored


search = train = compress = run
