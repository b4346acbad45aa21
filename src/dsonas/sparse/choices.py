"""Choices in a user's model: among layers, and among inputs; and the network that is left."""

from __future__ import annotations

import operator
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from keyword import iskeyword
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

_BATCH_NORMS: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
BATCH_NORM_RANKS = tuple(_BATCH_NORMS)
_LAZY: dict[int, type[nn.Module]] = {
    2: nn.LazyBatchNorm1d,
    4: nn.LazyBatchNorm2d,
    5: nn.LazyBatchNorm3d,
}


class Features(NamedTuple):
    """What the normalisation of a candidate has to know of its output."""

    rank: int  # number of dimensions, the batch included
    channels: int | None  # size of dimension 1; None where it is not known

    @classmethod
    def of(cls, y: Any, name: str) -> Features:
        """Read those of a candidate's output; a TypeError if it is no tensor."""
        if not isinstance(y, Tensor):
            raise TypeError(
                f"candidate {name!r} must give one tensor, got {type(y).__name__}: put it into a "
                "module that returns the part that counts"
            )
        return cls(y.ndim, y.shape[1] if y.ndim > 1 else None)


class Zero(nn.Module):
    """Give zeros of the shape of the input: the candidate "none" of a ``LayerChoice``.

    Example:
        >>> Zero()(torch.ones(2))
        tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Features of any shape to zeros of that shape."""
        return torch.zeros_like(x)


class Choice(nn.Module):
    """A choice, with a scaling factor for every candidate: the base of the two below.

    Attributes:
        factors: the scaling factors, shape (candidates,); those of removed candidates are 0.
        live: the names of the candidates that are left.
    """

    factors: nn.Parameter

    def __init__(self, names: Sequence[str], label: str | None, keep: int | None) -> None:
        super().__init__()
        if not names:
            raise ValueError(f"{type(self).__name__} must have at least one candidate, got none")
        if keep is not None and keep < 1:
            raise ValueError(
                f"keep must be at least 1, or None for any number, got {keep}: Zero() is a "
                "candidate that stands for nothing"
            )
        self.names, self.label, self.keep = tuple(names), label, keep
        self.live = self.names
        self.factors = nn.Parameter(torch.ones(len(names)))

    def drop(self, names: Sequence[str]) -> None:
        """Remove candidates physically."""
        self.live = tuple(name for name in self.live if name not in names)

    def final(self) -> nn.Module:
        """Build an ordinary module that computes what is left."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Show the choice in ``print(model)``."""
        pairs = zip(self.names, self.factors.tolist(), strict=True)
        factors = (f"{name}: {value:.3g}" for name, value in pairs if name in self.live)
        return ", ".join([*([f"label={self.label!r}"] if self.label else []), *factors])


class LayerChoice(Choice):
    """Compute the sum of all candidates, each times its scaling factor: y = sum_i lambda_i f_i(x).

    Args:
        candidates: modules that map the same input to features of one shape: a mapping of names to
            modules, or a sequence, whose names are "0", "1", ... One may be ``nn.Identity()``, one
            ``Zero()``. They may hold choices themselves.
        label: all places with one label make the same choice; their candidates must have the same
            names. None: this place chooses alone.
        keep: at most so many candidates survive a search, >= 1; None: any number.
        normalise: whether to normalise the output of every candidate, so that factors tell what
            candidates are worth rather than how large they are: batch normalisation without
            affine of 2-d, 4-d and 5-d features, of 3-d ones each sample by itself. Without it
            searches collapse to pools and identities.

    Raises:
        ValueError: if there are no candidates, two have names that the final network could not
            tell apart, or ``keep`` is out of range.
        TypeError: if a candidate is no module.

    Example:
        >>> layer = LayerChoice({"conv": nn.Conv2d(4, 4, 3, padding=1), "skip": nn.Identity()})
        >>> layer(torch.rand(2, 4, 8, 8)).shape
        torch.Size([2, 4, 8, 8])

    Source: arXiv 1811.01567, eq. 3.
    """

    def __init__(
        self,
        candidates: Mapping[str, nn.Module] | Sequence[nn.Module],
        *,
        label: str | None = None,
        keep: int | None = 1,
        normalise: bool = True,
    ) -> None:
        if isinstance(candidates, Mapping | nn.ModuleDict):
            pairs = [(str(name), module) for name, module in candidates.items()]
        else:
            pairs = [(str(i), module) for i, module in enumerate(candidates)]
        for name, module in pairs:
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"candidates must be modules, got {type(module).__name__} for {name!r}"
                )
        super().__init__([name for name, _ in pairs], label, keep)
        _require_apart(self.names)
        self.normalise = normalise
        self.candidates = nn.ModuleDict({_key(name): module for name, module in pairs})
        self.norms = nn.ModuleDict()

    def __len__(self) -> int:
        """Count the candidates that are left."""
        return len(self.live)

    def __getitem__(self, name: str | int) -> nn.Module:
        """Get a candidate by its name, or its place among all."""
        return self.candidates[_key(self.names[name] if isinstance(name, int) else name)]

    def replace(self, name: str, module: nn.Module) -> None:
        """Put another module in the place of a candidate."""
        self.candidates[_key(name)] = module

    def forward(self, x: Tensor) -> Tensor:
        """Features to the scaled sum of the candidates' features."""
        total, shape = None, None
        for name, factor in zip(self.names, self.factors.unbind(), strict=True):
            if name not in self.live:
                continue
            is_zero = isinstance(self[name], Zero)
            y = x if is_zero else self[name](x)
            features = Features.of(y, name)
            shape = _same_shape(shape, y, name)
            if not is_zero:
                y = self._normalised(name, features, y) * factor
                total = y if total is None else total + y
        if total is None:  # the factors have a gradient, 0, also where nothing but Zero is left
            total = torch.zeros_like(x) + 0 * self.factors.sum()
        return total

    def _normalised(self, name: str, features: Features, y: Tensor) -> Tensor:
        if not self.normalise:
            return y
        if features.rank < 2 or not y.is_floating_point():
            raise ValueError(
                f"candidate {name!r} must give real features of 2 dimensions or more, the batch "
                f"first, to be normalised, got {y.dtype} of {features.rank}: normalise=False"
            )
        return self._norm(name, features)(y)

    def _norm(self, name: str, features: Features) -> nn.Module:
        key = _key(name)
        if key not in self.norms:
            self.norms[key] = _plain_norm(features).to(self.factors).train(self.training)
        return self.norms[key]

    def prepare(self, features: Mapping[str, Features]) -> None:
        """Make the normalisations before the first batch, by what the candidates give."""
        for name in self.live:
            if self.normalise and name in features:
                self._norm(name, features[name])

    def features(self) -> dict[str, Features]:
        """Tell what is known of the candidates' outputs."""
        known = {
            name: _features_of(self.norms[_key(name)])
            for name in self.live
            if _key(name) in self.norms
        }
        if len(known) == len(self.live):
            return known
        guesses = [found for name in self.live if (found := _guess(self[name])) is not None]
        guess = next(iter([*known.values(), *guesses]), Features(4, None))
        return {name: known.get(name, guess) for name in self.live}

    def drop(self, names: Sequence[str]) -> None:
        """Remove candidates physically, with their normalisations."""
        super().drop(names)
        for key in map(_key, names):
            for modules in (self.candidates, self.norms):
                if key in modules:
                    del modules[key]

    def final(self) -> nn.Module:
        """Build an ordinary module: the candidates that are left, normalised, scaled and added.

        A factor goes into the batch normalisation that follows its candidate, which learns it from
        then on.
        """
        features = self.features() if self.normalise else {}
        terms = []
        for name in self.live:
            if isinstance(self[name], Zero):
                continue
            norm, scale = None, self.factors.detach()[self.names.index(name)]
            if name in features:
                found = dict(self.norms.items()).get(_key(name))
                norm, scale = _scaled_norm(found, features[name], scale)
            terms.append(_Term(name, self[name], norm, scale))
        if len(terms) == 1 and terms[0].scale is None:
            name, module, norm, _ = terms[0]
            return nn.Sequential(OrderedDict({_key(name): module, "norm": norm}))
        return _sum_module(terms)


class InputChoice(Choice):
    """Compute the sum of several features, each times its scaling factor.

    Args:
        n_candidates: how many features there are, >= 1; their names are "0", "1", ...
        label: all places with one label make the same choice; None: this place chooses alone.
        keep: at most so many survive a search, >= 1; None: any number.

    Raises:
        ValueError: if a number is out of range; from ``forward``, if there are more or fewer
            features.

    Example:
        >>> add = InputChoice(2)
        >>> add([torch.tensor([1.0]), torch.tensor([3.0])])
        tensor([4.], grad_fn=<AddBackward0>)

    Source: arXiv 1811.01567, eq. 3.
    """

    def __init__(
        self, n_candidates: int, *, label: str | None = None, keep: int | None = None
    ) -> None:
        super().__init__([str(i) for i in range(n_candidates)], label, keep)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Features of one shape to a feature of that shape."""
        if len(inputs) != len(self.names):
            raise ValueError(
                f"InputChoice must get {len(self.names)} features, one for each candidate, got "
                f"{len(inputs)}"
            )
        total, shape = None, None
        for name, x, factor in zip(self.names, inputs, self.factors.unbind(), strict=True):
            if name in self.live:
                shape = _same_shape(shape, x, name)
                y = x * factor
                total = y if total is None else total + y
        assert total is not None
        return total

    def final(self) -> nn.Module:
        """Build an ordinary module that adds up what is left of a list of features."""
        graph, root = fx.Graph(), nn.Module()
        inputs = graph.placeholder("inputs")
        total = None
        for name in self.live:
            y = graph.call_function(operator.getitem, (inputs, int(name)))
            factor = self.factors.detach()[int(name)]
            total = _added(graph, total, _scaled(graph, root, y, f"factor_{name}", factor))
        graph.output(total)
        return fx.GraphModule(root, graph, "InputSum")


class _Term(NamedTuple):
    name: str
    module: nn.Module
    norm: nn.Module | None
    scale: Tensor | None  # None where the normalisation has it


def _sum_module(terms: Sequence[_Term]) -> nn.Module:
    """An ordinary module that adds up terms; zeros without any."""
    graph, root = fx.Graph(), nn.Module()
    x = graph.placeholder("x")
    total = None
    for name, module, norm, scale in terms:
        root.add_module(_key(name), module)
        y = graph.call_module(_key(name), (x,))
        if norm is not None:
            root.add_module(f"{_key(name)}_norm", norm)
            y = graph.call_module(f"{_key(name)}_norm", (y,))
        if scale is not None:
            y = _scaled(graph, root, y, f"{_key(name)}_factor", scale)
        total = _added(graph, total, y)
    graph.output(graph.call_function(torch.zeros_like, (x,)) if total is None else total)
    return fx.GraphModule(root, graph, "LayerSum")


def _scaled(graph: fx.Graph, root: nn.Module, y: fx.Node, name: str, scale: Tensor) -> fx.Node:
    """Multiply by a buffer, which ``state_dict`` and, being multiplied as it is, a pickle keep."""
    root.register_buffer(name, scale.clone())
    return graph.call_function(operator.mul, (y, graph.get_attr(name)))


def _added(graph: fx.Graph, total: fx.Node | None, y: fx.Node) -> fx.Node:
    return y if total is None else graph.call_function(operator.add, (total, y))


_TAKEN = {"", "norm", "self", *dir(nn.ModuleDict()), *dir(fx.GraphModule({}, fx.Graph()))}


def _key(name: str) -> str:
    """A name as that of a submodule, in code too: without a dot, no attribute, no keyword."""
    key = "_" + name.replace(".", "_") if "." in name else name
    while key in _TAKEN or iskeyword(key):
        key = "_" + key
    return key


def _require_apart(names: Sequence[str]) -> None:
    """Refuse names that would be one in the final network, beside what stands there for each."""
    endings = ("", "_norm", "_factor")
    found = Counter(_key(name) + ending for name in names for ending in endings)
    twice = [key for key, count in found.items() if count > 1]
    if twice:
        raise ValueError(
            "candidates must have names that stay apart in the final network, got "
            f"{', '.join(map(repr, names))}, of which two give {twice[0]!r}: rename one"
        )


def _same_shape(shape: torch.Size | None, y: Tensor, name: str) -> torch.Size:
    """Refuse shapes that addition would broadcast, or that a lone ``Zero()`` would get wrong."""
    if shape is not None and shape != y.shape:
        raise ValueError(
            f"candidates must give features of one shape, got {tuple(shape)} of those before and "
            f"{tuple(y.shape)} of {name!r}"
        )
    return y.shape


def _plain_norm(features: Features) -> nn.Module:
    if features.rank in _BATCH_NORMS and features.channels is not None:
        return _BATCH_NORMS[features.rank](features.channels, affine=False)
    if features.rank in _LAZY:
        return _LAZY[features.rank](affine=False)
    return nn.GroupNorm(1, features.channels or 1, affine=False)


def _scaled_norm(
    norm: nn.Module | None, features: Features, scale: Tensor
) -> tuple[nn.Module, Tensor | None]:
    """A normalisation with the factor in it, and what is left of the factor."""
    if features.rank not in _BATCH_NORMS:
        return _plain_norm(features), scale
    if features.channels is None:
        return _LAZY[features.rank](), None
    found: Any = _BATCH_NORMS[features.rank](features.channels).to(scale)
    if norm is not None:
        found.load_state_dict(norm.state_dict(), strict=False)
        found.train(norm.training)
    with torch.no_grad():
        found.weight.copy_(scale.expand_as(found.weight))
    return found, None


def _features_of(norm: Any) -> Features:
    ranks = {kind: rank for rank, kind in _BATCH_NORMS.items()}
    if type(norm) in ranks:
        return Features(ranks[type(norm)], norm.num_features)
    return Features(3, norm.num_channels if isinstance(norm, nn.GroupNorm) else None)


_KINDS: dict[type[nn.Module], tuple[int, str]] = {
    nn.Conv2d: (4, "out_channels"),
    nn.ConvTranspose2d: (4, "out_channels"),
    nn.BatchNorm2d: (4, "num_features"),
    nn.Conv3d: (5, "out_channels"),
    nn.BatchNorm3d: (5, "num_features"),
    nn.Conv1d: (3, "out_channels"),
    nn.Linear: (2, "out_features"),
}


def _guess(module: nn.Module) -> Features | None:
    """What a module that has not run yet will give, by the last layer of it that tells."""
    found = None
    for part in module.modules():
        for kind, (rank, name) in _KINDS.items():
            if isinstance(part, kind):
                found = Features(rank, getattr(part, name))
    return found
