"""The supernet against the published one: outputs, loss, gradients, activations, statistics."""

from collections.abc import Collection

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsonas.nn.blocks import Path
from dsonas.nn.network import Network
from helpers import golden_cases as golden, golden_hooks as hooks

CASES = [
    (file, name)
    for file in ("share_forward", "full_forward")
    for name in golden.read_cases(file)[0]
]
# Float64 on both sides; stored as float32; moving statistics, which MXNet keeps in float32.
EXACT = {"rtol": 1e-11, "atol": 1e-11}
FLOAT32 = {"rtol": 2e-6, "atol": 2e-7}
STATISTICS = {"rtol": 0, "atol": 5e-7}

each_case = pytest.mark.parametrize(("file", "name"), CASES)
each_source = pytest.mark.parametrize(
    ("file", "name"), [case for case in CASES if golden.Case.of(*case).is_source]
)
each_path = pytest.mark.parametrize("path", ["plain", "levels", "buffer"])


def supernet(case: golden.Case, path: Path) -> Network:
    network = Network(
        case.supernet(),
        scaled=True,
        learn_gamma=not case.meta["fix_gamma"],
        path=path,
    )
    golden.load_values(network, case, case.param | case.aux)
    return network


def batch(case: golden.Case) -> tuple[Tensor, Tensor]:
    images, labels = case.groups["data"], case.groups["label"]
    return torch.from_numpy(images).double(), torch.from_numpy(labels).long()


@each_case
@each_path
def test_names_cover_the_whole_network(file: str, name: str, path: Path) -> None:
    case = golden.Case.of(file, name)
    network = supernet(case, path)
    names = golden.tensor_names(network, case)
    ours = {key for key in network.state_dict() if not key.endswith("num_batches_tracked")}
    assert set(names) == ours
    assert {n for theirs in names.values() for n in theirs} == set(case.param) | set(case.aux)


@each_case
def test_inference(file: str, name: str) -> None:
    case = golden.Case.of(file, name)
    network = supernet(case, "plain").eval()
    with torch.no_grad():
        found = network(batch(case)[0]).softmax(1)
    np.testing.assert_allclose(found, case.groups["infer_prob"], **EXACT)


@each_source
def test_inference_with_the_stored_statistics(file: str, name: str) -> None:
    case = golden.Case.of(file, name)
    network = supernet(case, "plain").eval()
    golden.load_values(network, case, case.groups["aux_after"])
    with torch.no_grad():
        found = network(batch(case)[0]).softmax(1)
    # Storing them as float32 costs as much as running in float32 does.
    rounding = 2e-7 + 3 * case.meta["f32_minus_f64"]["infer_after_prob"]
    np.testing.assert_allclose(found, case.groups["infer_after_prob"], rtol=0, atol=rounding)


@each_case
@each_path
def test_statistics_and_inference_after_a_training_pass(file: str, name: str, path: Path) -> None:
    case = golden.Case.of(file, name)
    network = supernet(case, path)
    counts = hooks.batch_norm_counts(network)
    images, _ = batch(case)
    network(images)
    found = hooks.biased_statistics(network, case, case.aux, counts, num_passes=1)
    for key, stored in case.groups["aux_after"].items() if case.is_source else ():
        np.testing.assert_allclose(found[key], stored, **FLOAT32, err_msg=key)
    golden.load_values(network, case, {key: value.numpy() for key, value in found.items()})
    with torch.no_grad():
        after = network.eval()(images).softmax(1)
    np.testing.assert_allclose(after, case.groups["infer_after_prob"], **STATISTICS)


@each_case
@each_path
def test_training_output_loss_and_gradients(file: str, name: str, path: Path) -> None:
    case = golden.Case.of(file, name)
    network = supernet(case, path)
    images, labels = batch(case)
    logits = network(images)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    loss.backward()
    np.testing.assert_allclose(logits.softmax(1).detach(), case.groups["train_prob"], **EXACT)
    np.testing.assert_allclose(loss.item(), case.groups["loss_sum"], **EXACT)
    np.testing.assert_allclose(loss.item() / len(labels), case.groups["loss_mean"], **EXACT)
    found = hooks.published_gradients(network, case)
    undefined = () if path == "plain" else undefined_gradients(case, network, images)
    compare_sums_and_norms(found, case.groups["grad_sum_norm"], undefined)
    for group, relative in (("grad_lambda64", 1e-11), ("grad", 2e-7)):
        for key, stored in case.groups[group].items():
            defined = case.param[key] != 0 if key in undefined else np.full(stored.shape, True)
            np.testing.assert_allclose(
                found[key].numpy().reshape(stored.shape)[defined],
                stored[defined],
                rtol=relative,
                atol=relative * max(1, abs(stored).max()),
                err_msg=key,
            )


def compare_sums_and_norms(
    found: dict[str, Tensor], stored: dict[str, np.ndarray], undefined: Collection[str]
) -> None:
    assert set(found) == set(stored)
    for key in set(found) - set(undefined):
        hooks.check_sum_and_norm(key, found[key], stored[key], relative=1e-11)


def undefined_gradients(case: golden.Case, network: Network, images: Tensor) -> set[str]:
    """Scaling factors whose gradient depends on how a tie in a max pool is broken.

    Features that agree wherever the factors are not 0 tie exactly in the plain path, but a matrix
    product may round them differently. Then another place wins, with another gradient for the
    factors that are 0 and for nothing else.
    """
    plain = supernet(case, "plain")
    choices = hooks.max_pool_choices(plain), hooks.max_pool_choices(network)
    for run in (plain, network):
        run(images)
    if hooks.same_choices(*choices):
        return set()
    return {name for name, values in case.factors.items() if (values == 0).any()}


@each_source
@each_path
def test_activations(file: str, name: str, path: Path) -> None:
    case = golden.Case.of(file, name)
    network = supernet(case, path)
    outputs = hooks.record_outputs(network, case)
    network(batch(case)[0])
    summaries = case.groups["act_mean_std_min_max"]
    assert set(outputs) <= set(summaries)
    for key, output in outputs.items():
        values = [output.mean(), output.std(correction=0), output.min(), output.max()]
        np.testing.assert_allclose(values, summaries[key], **FLOAT32, err_msg=key)
    samples = case.groups["act_sample0_ch01"]
    assert set(outputs) & set(samples)
    for key in set(samples) & set(outputs):
        sample = outputs[key] if outputs[key].dim() == 2 else outputs[key][0]
        stored = samples[key]
        np.testing.assert_allclose(sample[: len(stored)], stored, **FLOAT32, err_msg=key)
