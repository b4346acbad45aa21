"""Final networks with the auxiliary head against the published evaluation networks."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dsonas.graph.architecture import Architecture
from dsonas.nn.network import Network
from dsonas.nn.scaling import ScalingFactors
from helpers import golden_cases as golden, golden_hooks as hooks

CASES = list(golden.read_cases("eval_forward")[0])
EXACT = {"rtol": 1e-11, "atol": 1e-11}
# Gradients of single values are stored as float32, their sums and norms as float64.
FLOAT32 = 2e-7

each_case = pytest.mark.parametrize("name", CASES)


def derived_architecture(case: golden.Case) -> Architecture:
    """What the uncleaned scaling factors of the case stand for."""
    blocks = [
        golden.joined("scaling.blocks.", case.factor_names(unit), case, case.factors)
        for unit in (case.units[:1] if case.sharing == "share" else case.units)
    ]
    reductions = [
        golden.joined("scaling.reductions.", [f"lambda_{unit}"], case, case.factors)
        for unit in case.reduction_units
    ]
    return ScalingFactors(blocks, reductions).architecture(case.supernet())


def images_and_head(case: golden.Case) -> tuple[Tensor, dict[str, np.ndarray]]:
    """The batch and the one large weight, which are drawn again rather than stored."""
    skeleton, meta = case.skeleton, case.meta
    shape = meta["batch"], skeleton.input_channels, meta["size"], meta["size"]
    images = np.random.RandomState(meta["data_seed"]).randn(*shape).astype("f4")
    arrays = {}
    if "aux_fc_weight" in case.param:
        inputs, outputs = len(case.param["aux_conv1_weight"]), case.param["aux_fc_weight"].shape[1]
        weight = np.random.RandomState(meta["data_seed"] + 1).randn(outputs, inputs, 2, 2)
        arrays["aux_conv2_weight"] = (weight * np.sqrt(2 / (outputs * 4))).astype("f4")
    return torch.from_numpy(images).double(), arrays


def derived(case: golden.Case) -> tuple[Network, Tensor]:
    images, arrays = images_and_head(case)
    network = Network(derived_architecture(case), auxiliary=bool(arrays))
    golden.load_values(network, case, case.param | case.aux | arrays)
    return network, images


def outputs(network: Network, images: Tensor) -> dict[str, Tensor]:
    if network.auxiliary is None:
        return {"softmax_output": network(images)}
    logits, auxiliary = network.forward_with_auxiliary(images)
    return {"softmax_output": logits, "aux_softmax_output": auxiliary}


def smoothed_loss(case: golden.Case, logits: Tensor) -> Tensor:
    """Published smoothing: 1 - a on the label, a / (K - 1) elsewhere.

    The published a and a / (K - 1) are float32 in a network of float64, so the targets do not add
    up to 1 exactly. Its gradient is p - t for any targets t, and that of this loss is, too.
    """
    labels = torch.from_numpy(case.groups["label"]).long()
    smoothing = np.float32(case.meta["smooth_alpha"])
    targets = torch.full_like(logits, float(smoothing / np.float32(logits.shape[1] - 1)))
    targets[range(len(labels)), labels] = 1 - float(smoothing)
    return (logits.logsumexp(1) - (targets * logits).sum(1)).sum()


@each_case
def test_cleaning_builds_exactly_the_published_network(name: str) -> None:
    case = golden.Case.of("eval_forward", name)
    network, _ = derived(case)
    names = golden.tensor_names(network, case)
    found = {n for theirs in names.values() for n in theirs}
    assert found - {"aux_conv2_weight"} == set(case.param) | set(case.aux)
    assert set(names) == {n for n in network.state_dict() if not n.endswith("batches_tracked")}


@each_case
def test_inference(name: str) -> None:
    case = golden.Case.of("eval_forward", name)
    network, images = derived(case)
    with torch.no_grad():
        found = outputs(network.eval(), images)
    assert list(found) == case.meta["outputs"]
    for key, logits in found.items():
        np.testing.assert_allclose(logits.softmax(1), case.groups[f"infer_{key}"], **EXACT)


@each_case
def test_training_outputs_and_gradients(name: str) -> None:
    case = golden.Case.of("eval_forward", name)
    network, images = derived(case)
    found = outputs(network, images)
    for key, logits in found.items():
        np.testing.assert_allclose(logits.detach().softmax(1), case.groups[f"train_{key}"], **EXACT)
    losses = [smoothed_loss(case, logits) for logits in found.values()]
    # The published weight 0.4 of the auxiliary loss is a float32.
    weights = [1.0, float(np.float32(case.meta.get("aux_grad_scale", 0.0)))]
    torch.stack([w * x for w, x in zip(weights, losses, strict=False)]).sum().backward()
    gradients = hooks.published_gradients(network, case)
    assert set(gradients) == set(case.groups["grad_sum_norm"])
    for key, stored in case.groups["grad_sum_norm"].items():
        hooks.check_sum_and_norm(key, gradients[key], stored, relative=1e-10)
    for key, stored in case.groups["grad"].items():
        atol = FLOAT32 * max(1, abs(stored).max())
        np.testing.assert_allclose(gradients[key], stored, rtol=0, atol=atol, err_msg=key)
