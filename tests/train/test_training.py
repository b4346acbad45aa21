"""Step 3: configuration, resuming, measuring."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dsonas.data import Batches, DataConfig, load_data
from dsonas.graph.architecture import Architecture, Skeleton
from dsonas.nn.network import Network
from dsonas.train.engine import Engine, EngineConfig
from dsonas.train.loop import DivergedError, Interrupted, Journal, run_stage
from dsonas.train.training import TrainConfig, Training, evaluate

SKELETON = Skeleton(input_channels=1, image_size=8, blocks=(1, 1), channels=(4, 8))
WHOLE = Architecture.complete(SKELETON, ("separable_conv3x3", "max_pool3x3"), 2)
RECIPE = {"epochs": 3, "batch_size": 32, "lr": 0.1, "drop_path": 0.3, "dropout": 0.2}


@pytest.fixture(scope="module")
def data():
    return load_data(DataConfig(name="digits", max_train_images=100))


def stage_of(data, config: TrainConfig, seed: int = 0) -> Training:
    engine = Engine(EngineConfig(device="cpu", threads=1))
    torch.manual_seed(seed)
    network = Network(WHOLE, dropout=config.dropout)
    train = Batches(
        data.train, data, batch_size=config.batch_size, augmentation=data.train_augmentation,
        shuffle=True, drop_last=True, seed=seed,
    )  # fmt: skip
    return Training(engine.place(network), train, measured_batches(data), config, engine, seed)


def measured_batches(data, size: int = 100) -> Batches:
    return Batches(
        data.test, data, batch_size=size, augmentation=None, shuffle=False, drop_last=False, seed=0
    )


def trained(data, config: TrainConfig, seed: int = 0, **journal):
    stage, notes = stage_of(data, config, seed), Journal(**journal)
    run_stage(stage, notes, torch.device("cpu"))
    return stage.network.state_dict(), notes.rows


def equal(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(v, two[k]) for k, v in one.items())


def plain(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(data):
    config = TrainConfig(**RECIPE)
    one, two = trained(data, config), trained(data, config)
    torch.rand(3)
    assert equal(one[0], two[0])
    assert plain(one[1]) == plain(two[1])
    assert not equal(one[0], trained(data, config, seed=1)[0])


@pytest.mark.parametrize("after", [1, 3, 5, 9])
def test_a_resumed_training_gives_the_same_bits(data, after: int):
    config = TrainConfig(**RECIPE, auxiliary=0.0)
    expected, rows = trained(data, config)
    saved, left = [], [after]

    def stop() -> bool:
        left[0] -= 1
        return left[0] == 0

    with pytest.raises(Interrupted):
        trained(data, config, save=lambda state: saved.append(copy.deepcopy(state)), stop=stop)
    torch.rand(5)
    stage = stage_of(data, config, seed=0)
    journal = Journal(rows=saved[-1]["rows"], seconds=saved[-1]["seconds"])
    run_stage(stage, journal, torch.device("cpu"), saved[-1])
    assert equal(stage.network.state_dict(), expected)
    assert plain(journal.rows) == plain(rows)


def test_a_step_that_is_too_long_is_reported(data):
    saved = []
    with pytest.raises(DivergedError, match=r"--train\.lr"):
        trained(data, TrainConfig(epochs=20, batch_size=32, lr=1e30), save=saved.append)
    assert saved == []


@pytest.mark.parametrize("size", [100, 64, 1])
def test_measuring_equals_the_plain_mean_whatever_the_batch_size(data, size: int):
    engine = Engine(EngineConfig(device="cpu", threads=1))
    torch.manual_seed(0)
    network = Network(WHOLE).train()
    images, labels = next(measured_batches(data, 359).epoch(0))
    network(images)
    before = copy.deepcopy(network.state_dict())
    found = evaluate(network, measured_batches(data, size), engine)
    with torch.no_grad():
        logits = network.eval()(images)
    error = 100 * (logits.argmax(1) != labels).float().mean().item()
    assert found["test_error"] == pytest.approx(error, rel=1e-5)
    assert found["test_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
    assert equal(network.state_dict(), before)


def test_the_test_error_is_measured_when_due_and_at_the_end(data):
    config = TrainConfig(epochs=21, batch_size=32)
    rows = trained(data, config)[1]
    assert [row["epoch"] for row in rows if "test_error" in row] == [3, 6, 9, 12, 15, 18, 21]


def test_training_reduces_the_loss(data):
    rows = trained(data, TrainConfig(epochs=40, batch_size=32, lr=0.1))[1]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("epochs", [0, -1]),
        ("batch_size", [1, 0]),
        ("lr", [0.0, -0.1, float("nan")]),
        ("schedule", ["step", ""]),
        ("weight_decay", [-1e-4]),
        ("label_smoothing", [-0.1, 1.0]),
        ("auxiliary", [-0.4]),
        ("drop_path", [-0.1, 1.0]),
        ("dropout", [-0.1, 1.0, float("nan")]),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, values: list):
    assert name in TrainConfig.__dataclass_fields__
    for value in values:
        with pytest.raises(ValueError, match=rf"^train\.{name} must be .*got "):
            TrainConfig(**{name: value})


@pytest.mark.parametrize("schedule", ["cosine", "restarts", "linear"])
@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_learning_rates_stay_in_their_range(schedule: str, epochs: int):
    config = TrainConfig(schedule=schedule, epochs=epochs, lr=0.1)
    rate = config.learning_rate(5)
    rates = [rate(update) for update in range(5 * epochs)]
    assert all(0 <= value <= 0.1 + 1e-9 for value in rates)
    assert max(rates) > 0
