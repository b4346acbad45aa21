"""The supernet against the published one: outputs, loss, gradients, activations, statistics."""

from collections.abc import Iterator

import golden_cases as golden
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsonas.network import Network

CASES = [
    (file, name) for file in ("share_forward", "full_forward") for name in golden.read_cases(file)[0]
]
PATHS = [pytest.param(True, id="reference"), pytest.param(False, id="fused")]
# Agreement found: 2e-12 where both sides are float64; float32 where the data are stored so.
EXACT = {"rtol": 1e-10, "atol": 1e-10}
FLOAT32 = {"rtol": 2e-6, "atol": 2e-7}

pytestmark = pytest.mark.parametrize(("file", "name"), CASES)


def supernet(case: golden.Case, reference: bool) -> Network:
    network = Network(
        case.supernet(),
        sharing=case.sharing,
        learn_gamma=not case.meta["fix_gamma"],
        reference=reference,
    )
    golden.load_values(network, case, case.param | case.aux)
    return network


def batch(case: golden.Case) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(case.groups["data"]).double(), torch.from_numpy(
        case.groups["label"]
    ).long()


def published_gradients(network: Network, case: golden.Case) -> Iterator[tuple[str, Tensor]]:
    parameters = dict(network.named_parameters())
    for ours, theirs in golden.tensor_names(network, case).items():
        if ours in parameters:
            gradient = parameters[ours].grad
            assert (gradient is None) == (not parameters[ours].requires_grad)
            if gradient is None:
                gradient = torch.zeros_like(parameters[ours])
            yield from golden.parts(ours, theirs, case, gradient)


@pytest.mark.parametrize("reference", PATHS)
def test_names_cover_the_whole_network(file: str, name: str, reference: bool) -> None:
    case = golden.Case.of(file, name)
    network = supernet(case, reference)
    names = golden.tensor_names(network, case)
    ours = {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}
    assert set(names) == ours
    assert {n for theirs in names.values() for n in theirs} == set(case.param) | set(case.aux)


def test_inference_before_and_after_a_training_pass(file: str, name: str) -> None:
    case = golden.Case.of(file, name)
    network = supernet(case, False).eval()
    images, _ = batch(case)
    with torch.no_grad():
        before = network(images).softmax(1)
        source = golden.Case.of(file, case.meta.get("params_of", name))
        golden.load_values(network, case, source.groups["aux_after"])
        after = network(images).softmax(1)
    np.testing.assert_allclose(before, case.groups["infer_prob"], **EXACT)
    np.testing.assert_allclose(after, case.groups["infer_after_prob"], **FLOAT32)


@pytest.mark.parametrize("reference", PATHS)
def test_training_output_loss_and_gradients(file: str, name: str, reference: bool) -> None:
    case = golden.Case.of(file, name)
    network = supernet(case, reference)
    images, labels = batch(case)
    logits = network(images)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    loss.backward()
    np.testing.assert_allclose(logits.softmax(1).detach(), case.groups["train_prob"], **EXACT)
    np.testing.assert_allclose(loss.item(), case.groups["loss_sum"], **EXACT)
    np.testing.assert_allclose(loss.item() / len(labels), case.groups["loss_mean"], **EXACT)
    found = dict(published_gradients(network, case))
    sum_norm = case.groups["grad_sum_norm"]
    assert set(found) == set(sum_norm)
    for key, gradient in found.items():
        norm = sum_norm[key].reshape(-1)[1]
        values = [gradient.sum().item(), gradient.norm().item()]
        np.testing.assert_allclose(values, sum_norm[key], rtol=0, atol=1e-9 * max(1, norm))
    for group, relative in (("grad_lambda64", 1e-10), ("grad", 2e-7)):
        for key, stored in case.groups[group].items():
            np.testing.assert_allclose(
                found[key].view(stored.shape),
                stored,
                rtol=relative,
                atol=relative * max(1, abs(stored).max()),
                err_msg=key,
            )


def record_outputs(network: Network, case: golden.Case) -> dict[str, Tensor]:
    """Published name -> output of every module with parameters, filled by the next pass."""
    outputs: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    for ours, theirs in golden.module_names(network, case).items():

        def keep(module: nn.Module, inputs: object, output: Tensor, theirs: str = theirs) -> None:
            outputs[f"{theirs}_output"] = output.detach()
            if isinstance(module, nn.BatchNorm2d):
                relu = "relu" + theirs[2:] if theirs[:2] == "bn" else f"{theirs[:-2]}relu"
                outputs[f"{relu}_output"] = output.detach().relu()

        modules[ours].register_forward_hook(keep)
    return outputs


@pytest.mark.parametrize("reference", PATHS)
def test_activations(file: str, name: str, reference: bool) -> None:
    case = golden.Case.of(file, name)
    if "act_mean_std_min_max" not in case.groups or "params_of" in case.meta:
        case = golden.Case.of(file, case.meta.get("params_of", name))
    network = supernet(case, reference)
    outputs = record_outputs(network, case)
    with torch.enable_grad():
        network(batch(case)[0])
    summaries = case.groups["act_mean_std_min_max"]
    assert set(outputs) <= set(summaries)
    for key, output in outputs.items():
        values = [output.mean(), output.std(correction=0), output.min(), output.max()]
        np.testing.assert_allclose(values, summaries[key], **FLOAT32, err_msg=key)
    samples = case.groups["act_sample0_ch01"]
    for key in set(samples) & set(outputs):
        sample = outputs[key][0][: len(samples[key])]
        np.testing.assert_allclose(sample, samples[key], **FLOAT32, err_msg=key)


@pytest.mark.parametrize("reference", PATHS)
def test_statistics_after_a_training_pass(file: str, name: str, reference: bool) -> None:
    case = golden.Case.of(file, name)
    case = golden.Case.of(file, case.meta.get("params_of", name))
    network = supernet(case, reference)
    counts = golden.batch_norm_counts(network)
    network(batch(case)[0])
    found = golden.biased_statistics(network, case, case.aux, counts, num_passes=1)
    for key, stored in case.groups["aux_after"].items():
        np.testing.assert_allclose(found[key], stored, **FLOAT32, err_msg=key)
