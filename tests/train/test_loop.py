"""The loop: rows, checkpoints, interruption and divergence, on a stage that only counts."""

import math
import time

import pytest
import torch

from dsonas.train.checkpoints import CheckpointError
from dsonas.train.loop import DivergedError, Interrupted, Journal, run_stage

CPU = torch.device("cpu")


class Counting:
    """Its loss and errors are functions of the number of the step; its state is the steps seen."""

    name = "search"

    def __init__(self, epochs: int = 3, batches: int = 4, bad: int = 0, value=math.nan) -> None:
        self.num_epochs, self.num_batches = epochs, batches
        self.bad, self.value = bad, value
        self.seen: list[tuple[int, int]] = []
        self.ends: list[int] = []

    def batches(self, epoch: int, start: int):
        yield from range(start, self.num_batches)

    def step(self, batch, epoch: int, index: int):
        assert batch == index
        self.seen.append((epoch, index))
        size = 2 + index
        loss = self.value if len(self.seen) == self.bad else 1.0 + epoch + index / 7
        labels = torch.zeros(size, dtype=torch.long)
        logits = torch.tensor([[0.0, 1.0]] + [[1.0, 0.0]] * (size - 1))
        return torch.tensor(loss), logits, labels

    def end_epoch(self, epoch: int):
        self.ends.append(epoch)
        return {"extra": epoch}

    def state_dict(self):
        return {"seen": list(self.seen), "ends": list(self.ends)}

    def load_state_dict(self, state) -> None:
        self.seen, self.ends = list(state["seen"]), list(state["ends"])


def plain(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def whole(**options):
    stage, saved = Counting(**options), []
    journal = Journal(save=saved.append, save_every=0.0)
    run_stage(stage, journal, CPU)
    return stage, journal, saved


def test_rows_hold_means_over_images():
    _, journal, _ = whole()
    sizes = [2, 3, 4, 5]
    for epoch, row in enumerate(journal.rows):
        loss = sum(s * (1 + epoch + i / 7) for i, s in enumerate(sizes)) / 14
        assert row["loss"] == pytest.approx(loss)
        assert row["error"] == pytest.approx(100 * 4 / 14)
        assert (row["stage"], row["epoch"], row["extra"]) == ("search", epoch + 1, epoch)
        assert row["seconds"] >= 0


def test_every_batch_once_and_a_checkpoint_after_every_step_if_due():
    stage, _, saved = whole()
    assert stage.seen == [(e, b) for e in range(3) for b in range(4)]
    assert stage.ends == [0, 1, 2]
    places = [(state["epoch"], state["batch"]) for state in saved]
    assert places == [
        place for e in range(3) for place in [*((e, b) for b in range(1, 5)), (e + 1, 0)]
    ]
    journal = Journal(save=saved.append, save_every=1e9)
    saved.clear()
    run_stage(Counting(), journal, CPU)
    assert [(state["epoch"], state["batch"]) for state in saved] == [(3, 0)]


@pytest.mark.parametrize("after", range(1, 13))
def test_stopping_anywhere_and_going_on_changes_nothing(after: int):
    expected, journal, _ = whole()
    first, saved, left = Counting(), [], [after]

    def stop() -> bool:
        left[0] -= 1
        return left[0] == 0

    with pytest.raises(Interrupted):
        run_stage(first, Journal(save=saved.append, stop=stop, save_every=1e9), CPU)
    assert len(first.seen) == after
    state = saved[-1]
    second = Counting()
    rest = Journal(rows=list(state["rows"]), seconds=dict(state["seconds"]))
    run_stage(second, rest, CPU, state)
    assert (second.seen, second.ends) == (expected.seen, expected.ends)
    assert plain(rest.rows) == plain(journal.rows)
    assert rest.seconds["search"] >= state["seconds"]["search"]


def test_a_checkpoint_that_is_slow_to_write_is_written_seldom():
    stage, saved = Counting(epochs=2, batches=100), []

    def save(state) -> None:
        time.sleep(0.02)
        saved.append(state)

    run_stage(stage, Journal(save=save, save_every=1e-9), CPU)
    assert len(saved) <= 3  # the first, the last, and at most one in 0.4 seconds between


@pytest.mark.parametrize(
    "damage", [{"seen": None}, {"ends": 3}, {}], ids=["wrong kind", "another", "missing"]
)
def test_a_checkpoint_that_does_not_fit_is_refused(damage):
    _, _, saved = whole()
    state = {**saved[-1], "state": damage}
    with pytest.raises(CheckpointError, match=r"search does not fit this run .*: delete"):
        run_stage(Counting(), Journal(), CPU, state)


def test_a_finished_stage_is_not_repeated():
    _, _, saved = whole()
    stage, again = Counting(), []
    run_stage(stage, Journal(save=again.append), CPU, saved[-1])
    assert stage.seen == saved[-1]["state"]["seen"]
    assert again == []


@pytest.mark.parametrize("bad", [1, 4, 6, 30, 60])
def test_divergence_is_reported_and_nothing_saved_after_it(bad: int):
    stage, saved = Counting(epochs=3, batches=40, bad=bad), []
    with pytest.raises(DivergedError, match=r"nan in epoch \d of search.*--search\.lr"):
        run_stage(stage, Journal(save=saved.append, save_every=0.0), CPU)
    assert bad <= len(stage.seen) < bad + 25
    assert all(len(state["state"]["seen"]) < bad for state in saved)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_diverged_run_is_not_saved_when_it_is_stopped(value: float):
    saved = []
    stage = Counting(bad=2, value=value)
    journal = Journal(save=saved.append, stop=lambda: len(stage.seen) == 3)
    with pytest.raises(DivergedError):
        run_stage(stage, journal, CPU)
    assert saved == []


def test_progress_is_reported_after_every_step_and_epoch():
    calls = []
    journal = Journal(report=lambda stage, *rest: calls.append(rest))
    run_stage(Counting(epochs=1, batches=2), journal, CPU)
    assert calls == [(0, 1, None), (0, 2, None), (0, 2, journal.rows[-1])]


def test_without_epochs_nothing_happens():
    stage, saved = Counting(epochs=0), []
    run_stage(stage, Journal(save=saved.append), CPU)
    assert stage.seen == saved == []
