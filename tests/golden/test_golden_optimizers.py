"""Both optimisers against the published one, on scripted gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dsonas.graph.block import block_connections
from dsonas.graph.spaces import PAPER_OPERATIONS
from dsonas.sparse.proximal import ProximalNAG
from helpers import golden_cases as golden

ALL, META = golden.read_cases("apg")
# Case names are group/case here, so group them again: {group/case: {array name: array}}.
CASES: dict[str, dict[str, np.ndarray]] = {}
for _group, _arrays in ALL.items():
    for _key, _array in _arrays.items():
        _case, _name = _key.rsplit("/", 1)
        CASES.setdefault(f"{_group}/{_case}", {})[_name] = _array

# float64 up to the order of sums; one float32 step from the stored one before.
EXACT = {"rtol": 1e-14, "atol": 1e-14}
FLOAT32 = {"rtol": 1e-6, "atol": 1e-6}
Penalty = Callable[[Tensor], float | Tensor]


def unit_count(factors: Tensor, num_levels: int) -> int:
    """The published count of costly units of a block that are still in use."""
    connections = block_connections(num_levels, len(PAPER_OPERATIONS))
    end = 1 + num_levels * len(PAPER_OPERATIONS)
    live = {c.target for c, value in zip(connections, factors.tolist(), strict=True) if value}
    separable = [n for n in live if n != end and (n - 1) % len(PAPER_OPERATIONS) < 2]
    positive = sum(
        value > 0 for c, value in zip(connections, factors.tolist(), strict=True) if c.target == end
    )
    return 2 + len(separable) + positive


def penalty_of(name: str) -> Penalty:
    """The penalty of each scaling factor, from the factors before a step."""
    meta, arrays, group = META[name], CASES[name], name.split("/")[0]
    gamma, levels = meta["gamma"], meta["num_layers"]
    size = arrays["w0"].size
    if group == "adflops" and size == len(block_connections(levels, len(PAPER_OPERATIONS))):
        return lambda factors: gamma * (unit_count(factors, levels) + 1) / (6 * levels + 1)
    if group == "mac":
        key = "after" if "after" in meta["name"] else meta["name"].rsplit("_", 1)[1]
        return lambda factors: gamma * golden.MAC_RATIOS[key]
    if "coef" in arrays:
        return lambda factors: gamma * torch.from_numpy(arrays["coef"])
    return lambda factors: gamma


def is_lambda_step(name: str, step: int) -> bool:
    flags = CASES[name].get("flags")
    return flags is None or bool(flags[step, 0])


def proximal(parameter: torch.nn.Parameter, meta: dict[str, Any]) -> ProximalNAG:
    return ProximalNAG(
        [parameter],
        lr=meta["lr"],
        penalty=meta["gamma"],
        momentum=meta["momentum"],
        clip=meta["clip_gradient"],
    )


def scaled_gradient(name: str, step: int, dtype: torch.dtype) -> Tensor:
    gradient = torch.from_numpy(CASES[name]["g"][step]).to(dtype)
    return gradient * META[name]["rescale_grad"]


def scaling_cases(stored: str) -> list[str]:
    return [
        name
        for name, arrays in CASES.items()
        if name.split("/")[0] not in ("onestep", "weight")
        and stored in arrays
        and META[name]["momentum"] > 0
    ]


@pytest.mark.parametrize("name", scaling_cases("w64"))
def test_trajectory_in_float64(name: str) -> None:
    arrays, penalty = CASES[name], penalty_of(name)
    factors = torch.nn.Parameter(torch.from_numpy(arrays["w0"]).double().reshape(-1))
    optimizer = proximal(factors, META[name])
    for step in range(len(arrays["g"])):
        if is_lambda_step(name, step):
            optimizer.param_groups[0]["penalty"] = penalty(factors.detach())
            factors.grad = scaled_gradient(name, step, torch.float64)
            optimizer.step()
            momentum = optimizer.state[factors]["momentum_buffer"]
            np.testing.assert_allclose(momentum, arrays["m64"][step].reshape(-1), **EXACT)
        np.testing.assert_allclose(factors.detach(), arrays["w64"][step].reshape(-1), **EXACT)
        assert torch.equal(factors == 0, torch.from_numpy(arrays["w64"][step].reshape(-1)) == 0)


@pytest.mark.parametrize("name", scaling_cases("w32"))
def test_each_step_in_float32(name: str) -> None:
    arrays, penalty, thresholds = CASES[name], penalty_of(name), iter(CASES[name]["alpha"])
    before = [arrays["w0"], *arrays["w32"][:-1]]
    momenta = [np.zeros_like(arrays["w0"]), *arrays["m32"][:-1]]
    for step in filter(lambda t: is_lambda_step(name, t), range(len(arrays["g"]))):
        factors = torch.nn.Parameter(torch.from_numpy(before[step].reshape(-1).copy()))
        optimizer = proximal(factors, META[name])
        momentum = torch.from_numpy(momenta[step].reshape(-1).copy())
        optimizer.state[factors]["momentum_buffer"] = momentum
        here = optimizer.param_groups[0]["penalty"] = penalty(factors.detach())
        threshold = next(thresholds)
        np.testing.assert_allclose(
            np.broadcast_to(META[name]["lr"] * np.asarray(here), threshold.shape),
            threshold,
            rtol=1e-6,
        )
        factors.grad = scaled_gradient(name, step, torch.float32)
        optimizer.step()
        np.testing.assert_allclose(factors.detach(), arrays["w32"][step].reshape(-1), **FLOAT32)
        np.testing.assert_allclose(momentum, arrays["m32"][step].reshape(-1), **FLOAT32)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("onestep/")])
@pytest.mark.parametrize(("bits", "tolerance"), [(64, EXACT), (32, FLOAT32)])
def test_independent_steps(name: str, bits: int, tolerance: dict[str, float]) -> None:
    arrays, dtype = CASES[name], getattr(torch, f"float{bits}")
    factors = torch.nn.Parameter(torch.from_numpy(arrays["w0"]).to(dtype))
    optimizer = proximal(factors, META[name])
    momentum = torch.from_numpy(arrays["m0"].copy()).to(dtype)
    optimizer.state[factors]["momentum_buffer"] = momentum
    factors.grad = torch.from_numpy(arrays["g"]).to(dtype) * META[name]["rescale_grad"]
    optimizer.step()
    np.testing.assert_allclose(factors.detach(), arrays[f"w1_{bits}"], **tolerance)
    np.testing.assert_allclose(momentum, arrays[f"m1_{bits}"], **tolerance)


@pytest.mark.parametrize(
    "name", [n for n, a in CASES.items() if "w64" in a and META[n]["momentum"] == 0]
)
def test_without_momentum_we_step_where_the_published_code_stands_still(name: str) -> None:
    arrays, meta = CASES[name], META[name]
    assert (arrays["w64"] == arrays["w0"]).all()
    factors = torch.nn.Parameter(torch.from_numpy(arrays["w0"]).double())
    factors.grad = torch.ones_like(factors)
    before = factors.detach().clone()
    proximal(factors, meta).step()
    expected = (before - meta["lr"] * (1 + meta["gamma"])).clamp(min=0)
    torch.testing.assert_close(factors.detach(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", [n for n in CASES if n.startswith("weight/")])
def test_weights_follow_torch_nesterov_with_decay_after_clipping(name: str) -> None:
    arrays, meta = CASES[name], META[name]
    weight = torch.nn.Parameter(torch.from_numpy(arrays["w0"]).double())
    optimizer = torch.optim.SGD(
        [weight],
        lr=meta["lr"],
        momentum=meta["momentum"],
        nesterov=True,
        weight_decay=meta["wd"] if golden.decays(meta["name"]) else 0.0,
    )
    for step in range(len(arrays["g"])):
        weight.grad = scaled_gradient(name, step, torch.float64).reshape(weight.shape)
        torch.nn.utils.clip_grad_value_([weight], meta["clip_gradient"] or np.inf)
        optimizer.step()
        np.testing.assert_allclose(weight.detach(), arrays["w64"][step], **EXACT)
        buffer = optimizer.state[weight]["momentum_buffer"]
        np.testing.assert_allclose(buffer, arrays["m64"][step], **EXACT)
