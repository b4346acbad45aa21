"""What happens inside a network in a pass, under the published names."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsonas.nn.network import Network
from helpers.golden_cases import Arrays, Case, module_names, parts, tensor_names


def published_gradients(network: Network, case: Case) -> dict[str, Tensor]:
    """Published name -> gradient; 0 for a fixed gamma, as published."""
    found, parameters = {}, dict(network.named_parameters())
    for ours, theirs in tensor_names(network, case).items():
        if ours in parameters:
            gradient = parameters[ours].grad
            assert (gradient is None) == (not parameters[ours].requires_grad)
            if gradient is None:
                gradient = torch.zeros_like(parameters[ours])
            found |= parts(ours, theirs, case, gradient)
    return found


def record_outputs(network: Network, case: Case) -> dict[str, Tensor]:
    """Published name -> output of every module with parameters, filled by the next pass."""
    outputs: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    for ours, theirs in module_names(network, case).items():

        def keep(module: nn.Module, inputs: object, output: Tensor, theirs: str = theirs) -> None:
            outputs[f"{theirs}_output"] = output.detach()
            if isinstance(module, nn.BatchNorm2d):
                relu = "relu" + theirs[2:] if theirs[:2] == "bn" else f"{theirs[:-2]}relu"
                outputs[f"{relu}_output"] = output.detach().relu()

        modules[ours].register_forward_hook(keep)
    return outputs


def batch_norm_counts(network: Network) -> dict[str, int]:
    """BN module -> number of values per channel in its last training pass; filled by hooks."""
    counts: dict[str, int] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):

            def count(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                counts[name] = inputs[0].numel() // inputs[0].shape[1]

            # The fast paths do not call the BN of an operation; it sees the size of the block.
            if name.endswith(".bn"):
                module = network.get_submodule(name.split(".nodes.")[0])
            module.register_forward_pre_hook(count)
    return counts


def check_sum_and_norm(name: str, found: Tensor, stored: np.ndarray, relative: float) -> None:
    """Compare the sum and the norm of an array with the stored ones, to ``relative`` of the norm.

    Whatever the order, the computed sum of n terms is off by at most (n - 1) eps/2 times the sum of
    their absolute values; both sums are computed, so they may differ by twice that.
    """
    total, norm = stored.reshape(-1)
    atol = relative * max(1, norm)
    rounding = found.numel() * torch.finfo(torch.float64).eps * found.abs().sum().item()
    np.testing.assert_allclose(found.norm().item(), norm, rtol=0, atol=atol, err_msg=name)
    np.testing.assert_allclose(
        found.sum().item(), total, rtol=0, atol=atol + rounding, err_msg=name
    )


def biased_statistics(
    network: Network, case: Case, start: Arrays, counts: dict[str, int], num_passes: int
) -> dict[str, Tensor]:
    """Published moving statistics; PyTorch's hold the unbiased variance, MXNet's the biased one."""
    found = {}
    for ours, theirs in module_names(network, case).items():
        module = network.get_submodule(ours)
        if isinstance(module, nn.BatchNorm2d):
            n, decay = counts[ours], (1 - module.momentum) ** num_passes
            kept = decay * torch.from_numpy(start[f"{theirs}_moving_var"]).double()
            found[f"{theirs}_moving_mean"] = module.running_mean
            found[f"{theirs}_moving_var"] = kept + (module.running_var - kept) * (n - 1) / n
    return found


def max_pool_choices(network: Network) -> dict[str, Tensor]:
    """Max pool -> which place won in each window of its last pass; filled by hooks."""
    choices: dict[str, Tensor] = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.MaxPool2d):

            def keep(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                # Plain storage: the order of the search for the maximum depends on it.
                x = inputs[0].detach().contiguous()
                choices[name] = F.max_pool2d(x, 3, 1, 1, return_indices=True)[1]

            module.register_forward_pre_hook(keep)
    return choices


def same_choices(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether the same places won in all max pools."""
    return all(torch.equal(first[name], second[name]) for name in first)


def published_values(network: Network, case: Case) -> dict[str, Tensor]:
    """Published name -> value of every parameter."""
    found, parameters = {}, dict(network.named_parameters())
    for ours, theirs in tensor_names(network, case).items():
        if ours in parameters:
            found |= parts(ours, theirs, case, parameters[ours].detach())
    return found
