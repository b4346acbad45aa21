"""What ``dsonas COMMAND --help`` prints: the options that most people need, on one screen.

The texts are constants, so that help comes at once; tests compare every line with the parsers,
whose own help, by ``--help-all`` or ``--help SECTION``, is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from textwrap import fill

ALL = "--help-all"
_HEAD = """\
usage: dsonas {usage}

{summary}
"""
_RESUMES = "The same\ncommand on the same folder resumes. Defaults stand in [brackets]."
_RUN = """\
run
  --config NAME_or_FILE       a recipe (listed by dsonas --help) or a YAML file
  --out DIR                   folder of the run [runs/NAME]
  --seed N                    fixes every random choice [0]
"""
_PARETO = """\
  --pareto K                  train K networks of rising cost from one search
"""
_ARCHITECTURE = """\
  --architecture FILE         architecture.json, or chain.json with a budget
"""
_DATA = """\
data
  --data.name TEXT            digits, fashion-mnist, cifar10, cifar100, your own
                              folder:PATH (a folder per class) or shards:PATH
  --data.image_size N         side in pixels [that of the data]
  --data.test_fraction X      share of images held out for the test [0.2]
"""
_NETWORK = """\
network (the supernet)
  --network.levels N          levels of a block [4]
  --network.blocks [A,B,...]  blocks in each stage [[1, 1, 1]]
  --network.channels N        of the first stage; doubled in each next [16]
"""
_BUDGET = """\
budget (upper bounds on the network found)
  --budget.macs X             multiply-adds for one image, such as 2M
  --budget.params X           parameters, such as 100k
  --budget.latency_ms X       milliseconds for one image, on this machine
"""
_SEARCH = """\
steps
  --pretrain.epochs N         epochs of the supernet, unpruned [20]
  --search.epochs N           epochs of the search [40]
  --search.space share|full   share (all blocks alike) or full [share]
"""
_TRAIN = """\
  --train.epochs N            epochs of the network found [100]
  --train.batch_size N        images for one step [128]
  --train.lr X                largest learning rate [0.1]
"""
_ENGINE = """\
machine
  --engine.device TEXT        auto, cpu, cuda, ... [auto]
  --engine.threads N          CPU threads [all cores]
"""
_LOG = """\
  --log.trackers [A,B,...]    tensorboard, wandb, mlflow beside log.csv [none]
"""
_MORE = """\
more
  --import FILE.py            first import a file, with operations of your own
  --print_config              print the whole configuration as YAML and end
  --help SECTION              {sections}
  --help-all                  every option
"""
_DIR = """\
  --run DIR                   the folder of a finished run
"""
_STEPS = _SEARCH + _TRAIN
_TRAINING = "steps\n" + _TRAIN

SECTIONS = {
    "run": ("data", "network", "pretrain", "search", "budget", "train", "engine", "log"),
    "search": ("data", "network", "pretrain", "search", "budget", "engine", "log"),
    "train": ("data", "budget", "train", "engine", "log"),
    "evaluate": ("data", "engine"),
    "compare": ("data", "network", "pretrain", "search", "budget", "train", "engine", "log"),
    "plan": ("data", "network", "pretrain", "search", "budget", "train", "engine", "log"),
    "latency": ("data", "network", "pretrain", "search", "budget", "train", "engine", "log"),
}
_TEXTS = {
    "run": (
        "run [--config NAME_or_FILE] [--out DIR] [OPTIONS]",
        f"The whole job: search, fit the width to the budget, train, measure. {_RESUMES}",
        _RUN + _LOG + _PARETO + _DATA + _NETWORK + _BUDGET + _STEPS + _ENGINE,
    ),
    "search": (
        "search [--config NAME_or_FILE] [--out DIR] [OPTIONS]",
        f"Steps 1 and 2: pretrain and search; writes architecture.json. {_RESUMES}",
        _RUN + _LOG + _DATA + _NETWORK + _BUDGET + _SEARCH + _ENGINE,
    ),
    "train": (
        "train --architecture FILE [--config NAME_or_FILE] [OPTIONS]",
        f"Step 3: train and measure the network of an architecture file. {_RESUMES}",
        _RUN + _LOG + _ARCHITECTURE + _DATA + _BUDGET + _TRAINING + _ENGINE,
    ),
    "evaluate": (
        "evaluate --run DIR [--json] [OPTIONS]",
        "Measure the network of a finished run on its test images.\n"
        "Options say where the data are now and where to compute, if not as in the run.",
        "run\n"
        + _DIR
        + """\
  --json                      print one JSON object
data
  --data.name TEXT            where the images are now: folder:PATH, ...
machine
  --engine.device TEXT        auto, cpu, cuda, ...
  --engine.threads N          CPU threads
""",
    ),
    "predict": (
        "predict --run DIR IMAGE...",
        "Classify image files; prints file, class and probability (0 to 1), separated\nby tabs.",
        "images\n" + _DIR + "  IMAGE                       image files, or folders of them\n",
    ),
    "report": (
        "report DIR... [--out FILE] [--no_images]",
        "One self-contained HTML file about a run, or comparing several: the network\n"
        "found, how the search went, errors and misclassified images, cost.",
        """\
runs
  DIR                         run folders; they need not be finished
output
  --out FILE                  the file to write [DIR/report.html of the first]
  --no_images                 without the test images: no confusion, no mistakes
""",
    ),
    "export": (
        "export DIR [--format NAME[,NAME...]] [OPTIONS]",
        "Write the network of a finished run under DIR/export, for use without dsonas.\n"
        "Each file is read back, compared with the run and timed.",
        """\
run
  DIR                         the folder of a finished run
formats
  --format NAME               onnx, pt2 (torch.export) or python (source and
                              weights); several with commas [all]
  --fold                      fold batch normalisation into convolutions
output
  --threads N                 CPU threads of the latency in milliseconds [1]
  --json                      print one JSON object alone
""",
    ),
    "shards": (
        "shards FOLDER OUT [OPTIONS]",
        "Write an image folder as webdataset shards, to be streamed from a disk or an\n"
        "object store; use them by --data.name shards:OUT.",
        """\
images
  FOLDER                      one folder per class, or train/ and val/ with such
  OUT                         a new folder
  --size PIXELS               shrink to this shorter side [copy the files]
  --test_fraction X           share of images held out for the test [0.2]
files
  --images_per_shard N        images in a file at most [256]
  --workers N                 decoding threads [1]
""",
    ),
    "compare": (
        "compare [--config NAME_or_FILE] [--out DIR] [OPTIONS]",
        f"Searched, random and hand-made networks, trained alike: a fair table. {_RESUMES}",
        _RUN.replace("runs/", "runs/compare-")
        + """\
study
  --budgets A,B,...           bounds on the multiply-adds, such as 1M,3M
  --spaces A,B                share, full or both [that of --search.space]
  --seeds N                   searches of each space [3]
  --train_seeds N             trainings of each architecture found [2]
  --random N                  random architectures of each space and budget [8]
  --random_factors N          networks of the plan with random factors [8]
  --random_searches N         random searches of each space and budget [1]
  --hand_made N               trainings of each hand-made network [as seeds]
  --trial_epochs N            epochs of a trial [a fifth of train.epochs]
  --held_out X                share of the training images to choose by [0.1]
  --jobs.number N             jobs at a time, of one CPU thread [all cores]
  --dry_run                   print the jobs and their counted cost, and end
"""
        + _DATA
        + _STEPS,
    ),
    "plan": (
        "plan [--config NAME_or_FILE] [OPTIONS]",
        "What a run will take here, before anything is trained: steps, multiply-adds,\n"
        "memory and time of every stage. Takes the options of dsonas run.",
        """\
run
  --config NAME_or_FILE       a recipe (listed by dsonas --help) or a YAML file
size, if the images are not here
  --images N                  training images
  --test-images N             test images
  --classes N                 number of classes
output
  --json FILE                 write the plan to a file too
"""
        + _DATA
        + _STEPS
        + _ENGINE,
    ),
    "latency": (
        "latency [--config NAME_or_FILE] [--table FILE] [OPTIONS]",
        "Time the parts of a run's networks on this device; a run on another machine is\n"
        "led by the table: dsonas run --budget.latency_ms X --engine.latency_table FILE",
        """\
run
  --config NAME_or_FILE       a recipe (listed by dsonas --help) or a YAML file
  --table FILE                the table, a JSON file [latency.json]
  --widths X,Y,...            channels of the stages; 1 are the supernet's
size, if the images are not here
  --images N                  training images
  --test-images N             test images
  --classes N                 number of classes
"""
        + _DATA
        + _NETWORK
        + _ENGINE,
    ),
}


def asked_help(arguments: Sequence[str]) -> str | None:
    """What help the arguments of a command ask for.

    Args:
        arguments: those after the command's name.

    Returns:
        None for none, ``""`` for the short help, ``"all"``, or what follows ``--help``.

    Example:
        >>> asked_help(["--help", "search"]), asked_help(["--help-all"]), asked_help(["--seed"])
        ('search', 'all', None)
    """
    for argument, following in pairwise([*arguments, ""]):
        if argument == ALL:
            return "all"
        if argument in ("-h", "--help"):
            return "" if following.startswith("-") else following
    return None


def short_help(command: str, arguments: Sequence[str]) -> str | None:
    """The short help of a command, if its arguments ask for that.

    Args:
        command: its name.
        arguments: those after it.

    Returns:
        At most 40 lines of 80 columns; None if there is no such help or another one is asked for.

    Example:
        >>> print(short_help("predict", ["--help"]).splitlines()[0])
        usage: dsonas predict --run DIR IMAGE...
    """
    asked, sections = asked_help(arguments), SECTIONS.get(command, ())
    if asked is None or asked == "all" or command not in _TEXTS or (asked and sections):
        return None
    usage, summary, options = _TEXTS[command]
    return _HEAD.format(usage=usage, summary=summary) + "\n" + options + _more(command, sections)


def _more(command: str, sections: Sequence[str]) -> str:
    names = fill("all of " + ", ".join(sections), 50).replace("\n", "\n" + " " * 30)
    lines = _MORE.format(sections=names).split("\n  --")
    if "--config" not in _TEXTS[command][0]:
        lines = [line for line in lines if not line.startswith("print_config")]
    if not sections:
        lines = [line for line in lines if not line.startswith("help")]
    return "\n  --".join(lines).rstrip("\n")
