"""`dsonas compare` as a user runs it: refusals, a plan, and one whole study that is killed."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

OPTIONS = {
    "number": ("--seeds x", "seeds must be a whole number, got 'x'"),
    "range": ("--seeds 0", "seeds must be at least 1, got 0"),
    "processes": ("--processes 0", "jobs.number must be a whole number > 0 or null, got 0"),
    "jobs": ("--jobs.number x", "jobs.number must be a whole number, got 'x'"),
    "backend": ("--jobs.backend pbs", "jobs.backend must be one of loky, ray, dask, got 'pbs'"),
    "address": ("--jobs.address a:1", "jobs.address must be left out of this machine"),
    "fraction": ("--held_out x", "held_out must be a number, got 'x'"),
    "space": ("--spaces half", "spaces must be names out of"),
    "budget": ("--budgets 1k,zz", "budget.macs must be a positive number"),
    "infeasible": ("--budgets 100", "cannot be met"),
    "twice": ("--budgets 30k,30k", "budgets must not repeat"),
    "latency": ("--budget.latency_ms 1", "latency_ms must be left out"),
    "option": ("--search.lr 0", "search.lr must be a number > 0"),
    "job": ("--job nothing", "no job 'nothing'"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_is_refused(dsonas, tiny, tmp_path, case):
    arguments, fragment = OPTIONS[case]
    out = tmp_path / "study"
    given = ["--budgets", "30k", "--out", out, *arguments.split()]
    ended = dsonas("compare", *tiny, *given)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended
    assert fragment in ended.err
    assert not out.exists()


def test_a_budget_is_required(dsonas, tiny):
    ended = dsonas("compare", *tiny)
    assert ended.code == 2
    assert "--budgets 1M,3M" in ended.err


def test_batches_are_lowered_for_few_images_before_anything_is_counted(dsonas, tiny, tmp_path):
    given = ["--budgets", "30k,60k", "--out", tmp_path / "study", "--dry_run"]
    few = ["--data.max_train_images", "40", "--random_searches", "1"]
    lowered = dsonas("compare", *tiny, *given, *few)
    assert lowered.code == 0, lowered
    assert lowered.out.count("lowered for so few images") == 1
    sizes = ["--pretrain.batch_size", "4", "--search.batch_size", "4"]
    stated = dsonas("compare", *tiny, *given, *few, *sizes)
    assert stated.out.splitlines() == lowered.out.splitlines()[1:]


def test_a_dry_run_shows_the_jobs_and_does_none(dsonas, tiny, tmp_path):
    out = tmp_path / "study"
    ended = dsonas("compare", *tiny, "--budgets", "30k", "--out", out, "--dry_run")
    assert ended.code == 0
    assert "search     3 jobs" in ended.out
    assert not out.exists()


SMALL = shlex.split(
    "--budgets 30k --seeds 1 --train_seeds 1 "
    "--random 0 --random_factors 0 --random_searches 0 --hand_made 0"
)


def test_a_killed_study_goes_on_and_ends_with_the_comparison(dsonas, start, tiny, tmp_path):
    """Killed after its search: the same command does the rest, and the search only once."""
    out = tmp_path / "study"
    given = ["compare", *tiny, *SMALL, "--out", out, "--jobs.number", "1"]
    process = start(*given)
    search = out / "jobs" / "search-share-0" / "result.json"
    deadline = time.monotonic() + 120
    while not search.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.communicate()
    before = search.stat().st_mtime_ns

    ended = dsonas(*given)
    assert ended.code == 0, ended
    assert search.stat().st_mtime_ns == before
    value = json.loads((out / "compare.json").read_text())
    assert value["complete"]
    (entry,) = value["budgets"]
    assert [len(entry[m]) for m in ("searched", "random", "hand_made")] == [1, 0, 0]
    trained = out / "jobs" / "train-searched-share-0-at-30k-0"
    metrics = json.loads((trained / "metrics.json").read_text())
    assert entry["searched"] == [metrics["test_error"]]
    assert metrics["macs"] <= 30_000
    assert metrics["threads"] == 1
    # about ten times in a training, here after both epochs
    measured = [line.split(",")[4] for line in (trained / "log.csv").read_text().splitlines()[1:]]
    assert [bool(error) for error in measured] == [True, True]
    assert (out / "compare.md").exists()
    assert (out / "compare.svg").exists()

    again = dsonas(*given)
    assert again.code == 0
    assert "2 jobs, 2 of them done" in again.out
    other = dsonas(*given, "--train.lr", "0.2")
    assert other.code == 2
    assert "train.lr was 0.1 and is 0.2" in other.err
    other = dsonas(*given, "--trial_epochs", "2")
    assert other.code == 2
    assert "trial_epochs was 1 and is 2" in other.err

    other = dsonas(*[{"30k": "2k", "--budgets": "--budget.params"}.get(x, x) for x in given])
    assert other.code == 2
    assert "leading_measure was 'macs' and is 'params'" in other.err

    run = dsonas("run", *tiny, "--out", out)
    assert (run.code, run.err.count("\n")) == (2, 1)
    assert f"{out} is the folder of a study: a run needs another --out" in run.err
    study = dsonas(*[trained if argument == out else argument for argument in given])
    assert (study.code, study.out, study.err.count("\n")) == (2, "", 1)
    assert f"{trained} is the folder of a run: a study needs another --out" in study.err

    elsewhere = tmp_path / "elsewhere"
    archive(["pack", out, tmp_path / "study.json"])
    archive(["unpack", tmp_path / "study.json", elsewhere])
    moved = dsonas(*[elsewhere if argument == out else argument for argument in given])
    assert moved.code == 0
    assert "2 jobs, 2 of them done" in moved.out
    assert (elsewhere / "compare.md").read_text() == (out / "compare.md").read_text()

    searches = dsonas(*given, "--train_seeds", "0")
    assert searches.code == 0, searches
    assert "1 jobs, 1 of them done" in searches.out
    assert json.loads((out / "compare.json").read_text()) == value  # nothing to compare


def test_an_own_augmentation_is_that_of_all_jobs(dsonas, tiny, tmp_path):
    (tmp_path / "own.py").write_text("def flip(image):\n    return image.flip(-1)\n")
    out, augment = tmp_path / "study", f"{tmp_path / 'own.py'}:flip"
    given = ["--jobs.number", "1", "--out", out, "--data.augment", augment]
    ended = dsonas("compare", *tiny, *SMALL, *given)
    assert ended.code == 0, ended
    for config in (out / "jobs").glob("*/config.yaml"):
        assert f"augment: {augment}" in config.read_text()
    assert json.loads((out / "compare.json").read_text())["complete"]

    rule = tmp_path / "rule.py"
    rule.write_text("")
    ended = dsonas("compare", "--import", rule, *tiny, *SMALL, *given)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "rule.py was not imported when it was begun" in ended.err
    elsewhere = tmp_path / "elsewhere"
    archive(["pack", out, tmp_path / "study.json"])
    archive(["unpack", tmp_path / "study.json", elsewhere])
    (tmp_path / "own.py").write_text("def flip(image):\n    return image\n")
    for path in (out, elsewhere):
        given[3] = path
        ended = dsonas("compare", *tiny, *SMALL, *given)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert "own.py has changed since" in ended.err


MARK = """
import os
from pathlib import Path
with Path({log!r}).open("a") as file:
    file.write(f"{{os.getppid()}}\\n")
"""


@contextmanager
def ray_cluster() -> Iterator[str]:
    """Two nodes of one core, each a set of processes of its own; the cluster's address."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


@contextmanager
def dask_cluster() -> Iterator[str]:
    """A scheduler and two workers, each a process of its own; the scheduler's address."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster.scheduler_address


CLUSTERS = {"ray": ray_cluster, "dask": dask_cluster}


@pytest.mark.slow
@pytest.mark.parametrize("backend", CLUSTERS)
def test_a_cluster_of_two_workers_does_the_jobs_and_gets_the_same(
    start, tiny, tmp_path, backend, monkeypatch, here
):
    """The parent of a job is its worker: both work. Results are those of this machine's jobs."""
    marks = tmp_path / "marks"
    (tmp_path / "mark.py").write_text(MARK.format(log=str(marks)))
    given = ["compare", *tiny, *SMALL, "--random", "2", "--out", tmp_path / "study"]
    given += ["--import", tmp_path / "mark.py", "--jobs.backend", backend]
    with CLUSTERS[backend]() as address:
        if backend == "ray":
            given += ["--jobs.address", address]
        else:
            monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
        process = start(*given)
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, (out, err)
    value = json.loads((tmp_path / "study" / "compare.json").read_text())
    assert value["complete"]
    assert len(value["budgets"][0]["random"]) == 2
    parents = Counter(marks.read_text().split())
    del parents[str(os.getpid())]  # of the study itself
    assert len(parents) >= 2
    for name, result in here.items():
        assert timeless(tmp_path / "study" / "jobs" / name / "result.json") == result


@pytest.fixture(scope="module")
def here(start, tiny, tmp_path_factory) -> dict[str, dict]:
    """The results of the cluster's study by this machine."""
    out = tmp_path_factory.mktemp("here")
    start("compare", *tiny, *SMALL, "--random", "2", "--out", out).communicate(timeout=500)
    return {path.parent.name: timeless(path) for path in out.glob("jobs/*/result.json")}


def timeless(result: Path) -> dict:
    """A result without its times."""
    value = json.loads(result.read_text())
    return {key: value[key] for key in value if not key.endswith("seconds")}


def archive(arguments):
    """Run ``benchmarks/study_archive.py``."""
    script = Path(__file__).parents[2] / "benchmarks" / "study_archive.py"
    subprocess.run([sys.executable, script, *arguments], check=True)
