"""A few steps of every stage of every published recipe, on tiny files in the true formats."""

import csv
import json
import shlex
from pathlib import Path

import pytest

from dsonas.graph.architecture import Architecture
from dsonas.graph.spaces import cifar_space
from dsonas.run.fitting import transfer
from dsonas.run.recipes import recipe_names
from helpers.image_files import write_cifar, write_imagenet

pytestmark = pytest.mark.slow

SMALL = shlex.split("""
--network.channels 4 --search.epochs 1 --train.epochs 1 --engine.threads 1 --engine.device cpu
--data.max_test_images 10
""")
CIFAR = [*SMALL, *shlex.split("--budget.params 30k")]
IMAGENET = [*SMALL, *shlex.split("--network.blocks [1,1,1,1] --budget.macs 8M --data.workers 0")]
IMAGENET += shlex.split("--pretrain.batch_size 4 --search.batch_size 2 --train.batch_size 4")


def stages(folder: Path) -> list[str]:
    """The stages of a run, as its log has them."""
    with (folder / "log.csv").open(encoding="utf-8") as file:
        return [row["stage"] for row in csv.DictReader(file)]


def check_run(folder: Path, budget: dict[str, float]) -> Architecture:
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert 0 <= metrics["test_error"] <= 100
    for name, bound in budget.items():
        assert 0.8 * bound < metrics[name] <= bound
    return Architecture.load(folder / "architecture.json")


PUBLISHED = [n for n in recipe_names() if n.startswith("cifar") and not n.endswith("small")]


@pytest.mark.parametrize("name", PUBLISHED)
def test_cifar_recipes_run(name: str, dsonas, tmp_path: Path, monkeypatch):
    classes = 100 if name.startswith("cifar100") else 10
    write_cifar(tmp_path / "data", monkeypatch, classes)
    pretrains = not name.endswith("no-pretraining")
    options = ["--pretrain.epochs", 1] if pretrains else []
    num_images, size = (20, 4) if classes == 10 else (100, 50)
    options += [f"--{stage}.batch_size={size}" for stage in ("pretrain", "search", "train")]
    levels, blocks = 4, [1, 1, 1]
    if name not in ("cifar10-share", "cifar10-full"):
        levels, blocks = 2, [1, 1]  # the others differ from these in numbers only
    options += ["--network.levels", levels, f"--network.blocks={blocks}"]
    options += ["--data.max_train_images", num_images]
    out = tmp_path / "run"
    ended = dsonas(
        "run",
        "--config",
        name,
        *CIFAR,
        *options,
        "--out",
        out,
        "--data.name",
        f"{name.split('-')[0]}:{tmp_path / 'data'}",
    )
    assert ended.code == 0, ended.err
    assert stages(out) == ["pretrain"] * pretrains + ["search", "train"]
    found = check_run(out, {"params": 30e3})
    assert (found.num_levels, found.skeleton.image_size) == (levels, 32)
    assert len(set(found.blocks)) == 1 or "full" in name


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    write_imagenet(folder)
    return folder


@pytest.mark.parametrize("name", ["imagenet-share", "imagenet-full"])
def test_imagenet_recipes_run(name: str, dsonas, tmp_path: Path, imagenet: Path):
    options = [
        *IMAGENET,
        "--pretrain.epochs",
        1,
        "--data.name",
        f"folder:{imagenet}",
        "--network.levels",
        2,
    ]
    ended = dsonas("run", "--config", name, *options, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert stages(tmp_path / "run") == ["pretrain", "search", "train"]
    found = check_run(tmp_path / "run", {"macs": 8e6})
    skeleton = found.skeleton
    assert (skeleton.image_size, skeleton.stem, skeleton.num_classes) == (224, "imagenet", 3)


@pytest.fixture
def block(tmp_path: Path) -> Path:
    """The file of an architecture such as a search on CIFAR-10 finds."""
    whole = cifar_space(channels=8, blocks=(1, 1, 1)).complete()
    graph = whole.blocks[0]
    pruned = graph.prune([i % 2 == 0 for i in range(len(graph.live))]).clean()
    path = tmp_path / "architecture.json"
    Architecture(whole.skeleton, (pruned,) * len(whole.blocks), whole.reductions).save(path)
    return path


def test_a_block_of_cifar_is_trained_on_imagenet(dsonas, tmp_path, imagenet, block):
    command = ["train", "--config", "imagenet-transfer", "--architecture", block, *IMAGENET]
    command += ["--data.name", f"folder:{imagenet}", "--out", tmp_path / "run"]
    ended = dsonas(*command)
    assert ended.code == 0, ended.err
    assert stages(tmp_path / "run") == ["train"]
    found = check_run(tmp_path / "run", {"macs": 8e6})
    assert found.skeleton.blocks == (1, 1, 1, 1)
    assert found == transfer(Architecture.load(block), found.skeleton)
    again = dsonas(*command)
    assert (again.code, "is finished" in again.out) == (0, True)


def test_a_transfer_without_a_block_is_refused(dsonas, imagenet):
    for command in ("run", "search"):
        ended = dsonas(
            command, "--config", "imagenet-transfer", "--data.name", f"folder:{imagenet}"
        )
        assert ended.code == 2
        assert ended.err.count("\n") == 1
        assert "dsonas train --architecture FILE" in ended.err


def test_a_block_that_is_not_shared_is_refused(dsonas, tmp_path, imagenet, block):
    shared = Architecture.load(block)
    graph = cifar_space().complete().blocks[0]
    mixed = Architecture(shared.skeleton, (graph, *shared.blocks[1:]), shared.reductions)
    mixed.save(block)
    options = [*IMAGENET, "--data.name", f"folder:{imagenet}", "--out", tmp_path / "run"]
    ended = dsonas("train", "--config", "imagenet-transfer", "--architecture", block, *options)
    assert ended.code == 2
    assert "got 2 different ones: search with --search.space share" in ended.err
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("name", ["imagenet-share", "imagenet-full"])
def test_a_recipe_without_its_images_says_what_to_give(name: str, dsonas):
    ended = dsonas("run", "--config", name)
    assert ended.code == 2
    assert ended.err.count("\n") == 1
    assert "give folder:PATH" in ended.err
