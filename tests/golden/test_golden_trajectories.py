"""A short search, weight and factor steps in turn, against the published solver."""

import re
from collections.abc import Iterator
from itertools import cycle

import numpy as np
import pytest
import torch
from torch import Tensor

from dsonas.nn.blocks import Path
from dsonas.nn.network import Network
from dsonas.sparse.proximal import ProximalNAG
from dsonas.train.steps import weight_step
from helpers import golden_cases as golden, golden_hooks as hooks
from helpers.builders import factor_step

RUNS, META = golden.read_cases("train_steps")
EXACT = {"rtol": 1e-10, "atol": 1e-11}
FLOAT32 = {"rtol": 1e-6, "atol": 1e-6}
# After a branch of the plain path went the other way; float32 drifts by 5e-3 for that reason.
AFTER_A_TIE = {"rtol": 0, "atol": 2e-2}


def start(run: str) -> golden.Case:
    """The case that a run starts from, named in words."""
    match = re.fullmatch(r"(\w+)\.npz case (\w+)", META[run]["start"])
    assert match is not None
    return golden.Case.of(*match.groups())


def batch(case: golden.Case, kind: str, number: int) -> tuple[Tensor, Tensor]:
    """Batch ``number`` of the weight (W) or factor (L) part, drawn again rather than stored."""
    random = np.random.RandomState({"W": 1000, "L": 2000}[kind] + number)
    size, skeleton = case.meta["size"], case.skeleton
    images = random.randn(case.meta["batch"], skeleton.input_channels, size, size).astype("f4")
    labels = random.randint(0, skeleton.num_classes, case.meta["batch"])
    return torch.from_numpy(images).double(), torch.from_numpy(labels).long()


def optimizers(
    network: Network, case: golden.Case, run: str
) -> tuple[torch.optim.SGD, ProximalNAG]:
    meta, names = META[run], golden.tensor_names(network, case)
    groups: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and not name.startswith("scaling."):
            groups[all(map(golden.decays, names[name]))].append(parameter)
    weights = torch.optim.SGD(
        [
            {"params": groups[True], "weight_decay": meta["wd"]},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=meta["lr"],
        momentum=meta["momentum"],
        nesterov=True,
    )
    factors = ProximalNAG(
        factor_groups(network, case, run),
        lr=meta["lr"],
        momentum=meta["momentum"],
        clip=meta["clip_gradient"],
    )
    return weights, factors


def factor_groups(network: Network, case: golden.Case, run: str) -> list[dict[str, object]]:
    """A penalty for each connection; the published adaptive MAC never moves the reductions'."""
    gamma, adaptive = META[run]["gamma"], META[run]["variant"] == "mac"
    groups = []
    for i, vector in enumerate(network.scaling.blocks):
        penalty = torch.full_like(vector, gamma)
        for name in case.factor_names(case.units[i]) if adaptive else ():
            key = "after" if "after" in name else name.rsplit("_", 1)[1]
            penalty[case.positions(name)] *= golden.MAC_RATIOS[key]
        groups.append({"params": [vector], "penalty": penalty})
    if not adaptive:
        groups.append({"params": list(network.scaling.reductions), "penalty": gamma})
    return groups


def supernet(run: str, path: Path) -> Network:
    case = start(run)
    network = Network(
        case.supernet(),
        scaled=True,
        learn_gamma=not case.meta["fix_gamma"],
        path=path,
    )
    golden.load_values(network, case, case.param | case.aux)
    return network


def search(network: Network, run: str) -> Iterator[Tensor]:
    """Take a step, yield its probabilities, and so on."""
    case, meta = start(run), META[run]
    weights, factors = optimizers(network, case, run)
    kinds = [kind for kind in meta["order"].split() if kind in "WL"]
    done = {"W": 0, "L": 0}
    for _, kind in zip(range(meta["steps"]), cycle(kinds), strict=False):
        images, labels = batch(case, kind, done[kind])
        done[kind] += 1
        if kind == "W":
            _, logits = weight_step(network, weights, images, labels, clip=meta["clip_gradient"])
        else:
            _, logits = factor_step(network, factors, images, labels)
        yield logits.softmax(1)


def compare(
    network: Network, probabilities: Tensor, run: str, step: int, tolerance: dict[str, float]
) -> None:
    stored = RUNS[run]
    values = hooks.published_values(network, start(run))
    np.testing.assert_allclose(probabilities, stored["prob_steps"][step], **tolerance)
    for name, steps in stored["lambda_steps"].items():
        found = values[name].numpy().reshape(steps[step].shape)
        np.testing.assert_allclose(found, steps[step], **tolerance, err_msg=f"{name} {step}")
        if tolerance is EXACT:
            np.testing.assert_array_equal(found == 0, steps[step] == 0)
    for name, steps in stored["weight_steps"].items():
        loosest = {key: max(FLOAT32[key], tolerance[key]) for key in FLOAT32}
        np.testing.assert_allclose(values[name], steps[step], **loosest, err_msg=f"{name} {step}")


@pytest.mark.parametrize("run", RUNS)
def test_plain_search_follows_the_published_solver(run: str) -> None:
    network, case = supernet(run, "plain"), start(run)
    counts = hooks.batch_norm_counts(network)
    for step, probabilities in enumerate(search(network, run)):
        compare(network, probabilities, run, step, EXACT)
    assert step + 1 == META[run]["steps"] == len(RUNS[run]["prob_steps"])
    found = hooks.biased_statistics(network, case, case.aux, counts, META[run]["steps"])
    for name, stored in RUNS[run]["aux_final"].items():
        np.testing.assert_allclose(found[name], stored, **FLOAT32, err_msg=name)


@pytest.mark.parametrize("path", ["levels", "buffer"])
@pytest.mark.parametrize("run", RUNS)
def test_a_fast_search_follows_the_published_solver(run: str, path: Path) -> None:
    plain, fused = supernet(run, "plain"), supernet(run, path)
    choices = hooks.max_pool_choices(plain), hooks.max_pool_choices(fused)
    tolerance = EXACT
    for step, (_, probabilities) in enumerate(
        zip(search(plain, run), search(fused, run), strict=True)
    ):
        if not hooks.same_choices(*choices):
            tolerance = AFTER_A_TIE
        compare(fused, probabilities, run, step, tolerance)
