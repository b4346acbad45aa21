"""`dsonas compare` as a user runs it: refusals, a plan, and one whole study that is killed."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

OPTIONS = {
    "number": ("--seeds x", "seeds must be a whole number, got 'x'"),
    "range": ("--seeds 0", "seeds must be at least 1, got 0"),
    "processes": ("--processes 0", "processes must be at least 1"),
    "fraction": ("--held_out x", "held_out must be a number, got 'x'"),
    "space": ("--spaces half", "spaces must be names out of"),
    "budget": ("--budgets 1k,zz", "budget.macs must be a positive number"),
    "infeasible": ("--budgets 100", "cannot be met"),
    "twice": ("--budgets 30k,30k", "budgets must not repeat"),
    "latency": ("--budget.latency_ms 1", "latency_ms must be left out"),
    "option": ("--search.lr 0", "search.lr must be above 0"),
    "job": ("--job nothing", "no trial or ranking 'nothing'"),
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
    given = ["compare", *tiny, *SMALL, "--out", out, "--processes", "1"]
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
    # measured once, at the end
    measured = [line.split(",")[4] for line in (trained / "log.csv").read_text().splitlines()[1:]]
    assert [bool(error) for error in measured] == [False, True]
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


def archive(arguments):
    """Run ``benchmarks/study_archive.py``."""
    script = Path(__file__).parents[2] / "benchmarks" / "study_archive.py"
    subprocess.run([sys.executable, script, *arguments], check=True)
