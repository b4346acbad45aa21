"""Sums and concatenations whose inputs each have a learnable scaling factor, for any model."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from functools import lru_cache, reduce

import torch
from torch import Tensor, nn

from dsonas._utils import mask_like, send, write_back


class ScaledSum(nn.Module):
    """A sum of features in which every input has a scaling factor: y = sum_i s_i * lambda_i * x_i.

    Args:
        num_inputs: how many features are added, >= 1; every factor starts at 1.
        signs: s, constants, such as -1 for what is subtracted; 1 each by default.

    Attributes:
        factors: the scaling factors, shape (num_inputs,), dimensionless.

    Raises:
        ValueError: if ``num_inputs`` is below 1.

    Example:
        >>> add = ScaledSum(2)
        >>> add(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
        tensor([4., 6.], grad_fn=<AddBackward0>)

    Source: arXiv 1811.01567, eq. 3.
    """

    def __init__(self, num_inputs: int, signs: Iterable[float] | None = None) -> None:
        super().__init__()
        if num_inputs < 1:
            raise ValueError(f"num_inputs must be at least 1, got {num_inputs}")
        self.signs = (1.0,) * num_inputs if signs is None else tuple(signs)
        self.factors = nn.Parameter(torch.ones(num_inputs))

    def scaled(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Every input times its factor; a ValueError if there are more or fewer inputs."""
        if len(inputs) != len(self.factors):
            raise ValueError(
                f"{type(self).__name__} must get {len(self.factors)} inputs, one for each factor, "
                f"got {len(inputs)}"
            )
        terms = zip(inputs, self.factors.unbind(), self.signs, strict=True)
        return [x * (factor if sign == 1 else factor * sign) for x, factor, sign in terms]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Features of one shape to a feature of that shape."""
        return reduce(operator.add, self.scaled(inputs))

    def extra_repr(self) -> str:
        """The factors, for ``print(model)``."""
        return ", ".join(f"{value:.3g}" for value in self.factors.tolist())


class ScaledConcat(ScaledSum):
    """A concatenation of features along ``dim`` in which every input has a scaling factor.

    Example:
        >>> join = ScaledConcat(2, dim=0)
        >>> join(torch.tensor([1.0]), torch.tensor([3.0]))
        tensor([1., 3.], grad_fn=<CatBackward0>)
    """

    def __init__(self, num_inputs: int, dim: int = 1) -> None:
        super().__init__(num_inputs)
        self.dim = dim

    def forward(self, *inputs: Tensor) -> Tensor:
        """Features that agree in all dimensions but ``dim`` to one feature."""
        return torch.cat(self.scaled(inputs), self.dim)


def scaling_factors(model: nn.Module) -> list[nn.Parameter]:
    """The scaling factors of a model: what ``ProximalNAG`` is to be given.

    One vector for each ``ScaledSum`` and ``ScaledConcat``, in the order of ``model.modules()``.

    Example:
        >>> model = nn.ModuleList([nn.Linear(2, 2), ScaledSum(3)])
        >>> [factor.tolist() for factor in scaling_factors(model)]
        [[1.0, 1.0, 1.0]]
    """
    return [module.factors for module in model.modules() if isinstance(module, ScaledSum)]


@torch.no_grad()
def mask_factors(
    vectors: Sequence[Tensor],
    flags: Sequence[Sequence[bool]],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Set the factors of removed connections to 0, in place, and clear their momenta.

    ``flags`` tell for every factor of every vector whether its connection is live.

    Example:
        >>> vector = torch.tensor([0.3, 0.4])
        >>> mask_factors([vector], [[True, False]])
        >>> vector
        tensor([0.3000, 0.0000])
    """
    for vector, live in zip(vectors, flags, strict=True):
        mask = mask_like(live, vector)
        vector.mul_(mask)
        if optimizer is not None and "momentum_buffer" in optimizer.state.get(vector, {}):
            optimizer.state[vector]["momentum_buffer"].mul_(mask)


@torch.no_grad()
def normalise_factors(
    factors: Iterable[Tensor], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Give the factors of every sum or concatenation a mean square of 1, in place, zeros counted.

    Call it after every step of ``ProximalNAG``. Where normalisation follows, the scale of a sum is
    free, and the penalty alone would press all its factors down together. Normalised, they compete:
    the weakest go to 0. The norm stays what it was at the start, so that a factor that reaches 0 or
    comes back does not change the scale of the others: the last live one of n has the factor
    sqrt(n).

    Args:
        factors: vectors of scaling factors; one that is all 0 stays so.
        optimizer: the one that steps them; its momenta lose the part along their vector, which
            would only change the scale again.

    Example:
        >>> vector = torch.tensor([0.3, 0.4, 0.0])
        >>> normalise_factors([vector])
        >>> vector
        tensor([1.0392, 1.3856, 0.0000])
    """
    vectors = list(factors)
    if not vectors:
        return
    sizes = [vector.numel() for vector in vectors]
    flat = torch.cat([vector.reshape(-1) for vector in vectors])
    index, counts = _owners(tuple(sizes), flat.dtype, flat.device)

    def sums(values: Tensor) -> Tensor:
        return flat.new_zeros(len(sizes)).index_add(0, index, values)

    squares = sums(flat.square()).clamp(min=torch.finfo(flat.dtype).tiny)
    state = {} if optimizer is None else optimizer.state
    momenta = [
        state[vector].get("momentum_buffer") if vector in state else None for vector in vectors
    ]
    moved = [momentum for momentum in momenta if momentum is not None]
    if moved:
        found = zip(momenta, vectors, strict=True)
        moving = torch.cat(
            [(torch.zeros_like(v) if m is None else m).reshape(-1) for m, v in found]
        )
        moving -= flat * (sums(moving * flat) / squares)[index]
        if len(moved) == len(vectors):
            write_back(moving, moved)
        else:
            pieces = zip(momenta, moving.split(sizes), strict=True)
            kept = [piece for momentum, piece in pieces if momentum is not None]
            write_back(torch.cat(kept), moved)
    flat *= (counts / squares).sqrt()[index]
    write_back(flat, vectors)


@lru_cache(maxsize=8)  # sent once for a structure
def _owners(
    sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """For vectors in a row, of which each entry is, and how many entries each has."""
    owners = torch.repeat_interleave(torch.tensor(sizes))
    return send(owners, device), send(torch.tensor(sizes, dtype=dtype), device)
