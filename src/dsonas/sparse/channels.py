"""Scaling factors on the channels of any traced model, and the physical removal of channels.

Which channels can only go together is found by the dependency graph of torch-pruning. A factor
multiplies the weights with which layers read its channel, y = W (lambda * x): at 0 nothing reads
the channel any more, whatever normalisation and activation stand in between, so that it can be
removed exactly; and the penalty acts on what readers make of a channel, not on its scale.
"""

from __future__ import annotations

import operator
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_map

from dsonas.sparse.absorbing import is_depthwise, narrow_inputs, narrow_outputs
from dsonas.sparse.observing import module_of, require_equal
from dsonas.sparse.recording import arguments, copied, has_effect

_EACH = (_BatchNorm, _InstanceNorm, nn.PReLU)  # layers that treat each channel by itself
FIXED = -1  # a channel without a factor
MOST_INDICES = 2_000_000  # that torch-pruning may map in one graph: see _Counted


class _ScaledColumns(nn.Module):
    """A layer whose weights of every input are multiplied by a factor."""

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        layer = cast(Any, self)
        weight = layer.weight * scale.view(1, -1, *[1] * (layer.weight.ndim - 2))
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, layer.bias)
        return layer._conv_forward(x, weight, layer.bias)


class _ScaledLinear(_ScaledColumns, nn.Linear):
    pass


class _ScaledConv1d(_ScaledColumns, nn.Conv1d):
    pass


class _ScaledConv2d(_ScaledColumns, nn.Conv2d):
    pass


class _ScaledConv3d(_ScaledColumns, nn.Conv3d):
    pass


_SCALED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _ScaledLinear, nn.Conv1d: _ScaledConv1d, nn.Conv2d: _ScaledConv2d,
    nn.Conv3d: _ScaledConv3d,
}  # fmt: skip
_PLAIN = {scaled: plain for plain, scaled in _SCALED.items()}


class ChannelScales(nn.Module):
    """The scaling factors of groups of channels, and what each reader multiplies its inputs by.

    ``indices`` has for every reader, for every input the number of its channel among those of all
    groups one after the other; ``FIXED`` for 1.
    """

    def __init__(self, sizes: Sequence[int], indices: Sequence[Tensor]) -> None:
        super().__init__()
        self.factors = nn.ParameterList([nn.Parameter(torch.ones(size)) for size in sizes])
        self.num_readers = len(indices)
        for i, index in enumerate(indices):
            self.register_buffer(f"index_{i}", index + 1, persistent=False)

    def forward(self) -> list[Tensor]:
        """Look up the scale of every input of every reader."""
        flat = torch.cat([self.factors[0].new_ones(1), *self.factors])
        return [flat[getattr(self, f"index_{i}")] for i in range(self.num_readers)]


@dataclass
class ChannelMap:
    """Which channels of which layers go together.

    Args:
        sizes: channels of every group, by the name of a layer that makes them. All channels are
            numbered, those of one group after the other.
        outs: for every layer that makes or passes channels on, the number of each of its outputs;
            ``FIXED`` for those that stay.
        ins: the same for the inputs of every layer that reads channels.
    """

    sizes: dict[str, int] = field(default_factory=dict)
    outs: dict[str, Tensor] = field(default_factory=dict)
    ins: dict[str, Tensor] = field(default_factory=dict)

    def kept(self, flags: Sequence[Sequence[bool]]) -> Tensor:
        """Join the flags of all groups to one mask over numbers, with one more for ``FIXED``."""
        return torch.tensor([flag for group in flags for flag in group] + [True])

    def readers(self) -> list[int]:
        """Count the layers that read each group."""
        sizes = torch.tensor(list(self.sizes.values()), dtype=torch.long)
        owner = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        read = [owner[index[index >= 0]].unique() for index in self.ins.values()]
        return torch.cat(read).bincount(minlength=len(sizes)).tolist() if read else []

    def subset(self, names: Sequence[str]) -> ChannelMap:
        """Keep some groups."""
        number = torch.full((sum(self.sizes.values()) + 1,), FIXED)
        start = count = 0
        for name, size in self.sizes.items():
            if name in names:
                number[start : start + size] = torch.arange(count, count + size)
                count += size
            start += size
        maps = [
            {key: number[index] for key, index in found.items() if (number[index] >= 0).any()}
            for found in (self.outs, self.ins)
        ]
        return ChannelMap({name: self.sizes[name] for name in names}, *maps)


def find_channels(model: fx.GraphModule, example: Any) -> ChannelMap:
    """Find the channels of a traced model that can be removed, and which go together.

    A group is left alone where removal is not the same as a factor of 0: where channels are
    normalised together, mixed by something else than a convolution or linear layer, or given out.
    That is tried out with other weights and inputs.

    Raises:
        ValueError: if torch-pruning is missing, or cannot follow the model.
    """
    try:
        import torch_pruning as tp
    except ImportError:
        raise ValueError(
            "channels=True needs torch-pruning, which is not installed: python -m pip install "
            '"dsonas[compress]", or dsonas.compress(..., channels=False) for branches alone'
        ) from None
    replica = _fresh(model)
    args, kwargs = arguments(replica, _noise(example))
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tp.DependencyGraph().build_dependency(
                replica, (), forward_fn=lambda m, _: m(*args, **kwargs), verbose=False
            )
            _count_indices(graph)
            failed = _leave_out_failures(graph)
            groups = [group for group in graph.get_all_groups() if group]
            found = _Collector(tp, graph, replica, groups).collect()
            if not found.sizes and failed:
                raise failed[0]
    except Exception as error:  # whatever it meets in a model that it does not know
        raise ValueError(
            f"channels=True needs a model that torch-pruning can follow, but it stops: {error!r}; "
            "dsonas.compress(..., channels=False) removes branches alone"
        ) from error
    return found.subset(_exact(model, example, found, list(found.sizes)))


class _Counted(list):
    """The index mappings of a dependency; the indices that those of one graph give are counted.

    The walk of torch-pruning leaves out what it has seen, the same layer and indices. So it ends
    unless mappings give ever new indices, as where it misreads a reshape (Swin V2).
    """

    def __init__(self, mappings: Any, seen: list[int]) -> None:
        super().__init__(mappings)
        self.seen = seen

    def __iter__(self) -> Iterator[Any]:
        for mapping in super().__iter__():
            yield mapping and partial(self._mapped, mapping)

    def _mapped(self, mapping: Any, indices: list[Any]) -> list[Any]:
        found = mapping(indices)
        self.seen[0] += len(found)
        if self.seen[0] > MOST_INDICES:
            raise RuntimeError(
                f"its walk through the graph has met {MOST_INDICES:,} indices without an end"
            )
        return found


def _count_indices(graph: Any) -> None:
    """Let a walk through a graph stop with an error where it would not end."""
    seen = [0]
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.index_mapping = _Counted(dependency.index_mapping, seen)


def _leave_out_failures(graph: Any) -> list[Exception]:
    """Let the walks that fail give empty groups; what they failed with is listed as they do."""
    failed: list[Exception] = []
    walk = graph.get_pruning_group

    def get_pruning_group(*args: Any) -> Any:
        try:
            return walk(*args)
        except Exception as error:  # where it misreads a reshape, say
            failed.append(error)
            return []

    graph.get_pruning_group = get_pruning_group
    return failed


class _Collector:
    """Reads the groups of a dependency graph, leaving those alone that are not clean."""

    def __init__(self, tp: Any, graph: Any, model: nn.Module, groups: list[Any]) -> None:
        self.tp, self.graph, self.groups = tp, graph, groups
        self.names = {module: name for name, module in model.named_modules()}
        self.found = ChannelMap()
        uses = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
        self.tied = {m for m in model.modules() if any(uses[id(p)] > 1 for p in m.parameters())}

    def collect(self) -> ChannelMap:
        for group in self.groups:
            start = sum(self.found.sizes.values())
            parts = self._parts(group)
            if parts is None:
                continue
            self.found.sizes[self.names[group[0].dep.target.module]] = len(group[0].idxs)
            for module, reads, idxs, roots in parts:
                maps, size = self._place(module, reads)
                index = maps.setdefault(self.names[module], torch.full((size,), FIXED))
                index[idxs] = torch.tensor(roots) + start
        return self.found

    def _place(self, module: Any, reads: bool) -> tuple[dict[str, Tensor], int]:
        pruner = self.graph.get_pruner_of_module(module)
        size = pruner.get_in_channels(module) if reads else pruner.get_out_channels(module)
        return (self.found.ins if reads else self.found.outs), size

    def _parts(self, group: Any) -> list[tuple[nn.Module, bool, list[int], list[int]]] | None:
        """What a group consists of; None if something in it is not known to be separable."""
        kinds, first = self.tp.ops.OPTYPE, group[0].dep.target.module
        size, found, read = len(group[0].idxs), [], False
        for item in group:
            node, module = item.dep.target, item.dep.target.module
            if module not in self.names:
                if node.type in (kinds.OUTPUT, kinds.PARAMETER):
                    return None
                continue
            if isinstance(module, nn.PReLU) and module.num_parameters == 1:
                continue  # one slope for all channels
            reads = not _passes(module) and self.graph.is_in_channel_pruning_fn(item.dep.handler)
            counts = Counter(item.root_idxs)
            whole = len(counts) == size and len(set(counts.values())) == 1
            # a reshape that is misread gives numbers of channels that a layer has not
            if not (
                self._is_known(module, reads)
                and whole
                and max(item.idxs) < self._place(module, reads)[1]
            ):
                return None
            read |= reads
            found.append((module, reads, list(item.idxs), list(item.root_idxs)))
        if not read or size < 2:
            return None
        for channel in (0, size - 1):  # alone, it must take nothing along
            fn = self.graph.get_pruner_of_module(first).prune_out_channels
            alone = self.graph.get_pruning_group(first, fn, [channel])
            if not alone or len(alone[0].idxs) != 1:
                return None
        return found

    def _is_known(self, module: nn.Module, reads: bool) -> bool:
        """Whether channels can be taken from a layer, of its inputs or of its outputs."""
        if module in self.tied:
            return False
        if reads:
            return type(module) in _SCALED and getattr(module, "groups", 1) == 1
        return _passes(module) or (
            isinstance(module, nn.Linear | _ConvNd)
            and not getattr(module, "transposed", False)
            and getattr(module, "groups", 1) == 1
        )


def _passes(layer: nn.Module) -> bool:
    """Whether a layer gives for each channel what it reads of that one."""
    return isinstance(layer, _EACH) or is_depthwise(layer)


def _exact(model: fx.GraphModule, example: Any, found: ChannelMap, names: list[str]) -> list[str]:
    """The groups of which channels can be removed exactly: all, or those of both halves."""
    if not names:
        return []
    part, replica = found.subset(names), _fresh(model)
    generator = torch.Generator().manual_seed(len(names))
    flags = [(torch.rand(n, generator=generator) > 0.4).tolist() for n in part.sizes.values()]
    flags = [[True, *group[1:-1], False] for group in flags]
    cut = [[1.0 * flag for flag in group] for group in flags]
    try:
        fold_factors(replica, part, [torch.tensor(group) for group in cut])
        narrowed = copied(replica)
        remove_channels(narrowed, part, flags)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            require_equal(replica, narrowed, _noise(example), "")
    except (ValueError, RuntimeError, IndexError):
        if len(names) == 1:
            return []
        half = len(names) // 2
        good = [n for some in (names[:half], names[half:])
                for n in _exact(model, example, found, some)]  # fmt: skip
        return good if len(good) < len(names) else []  # two that do not go together
    return names


def _fresh(model: fx.GraphModule) -> fx.GraphModule:
    """A copy of a model with other weights, none 0, all of which take gradients."""
    replica = copied(model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in replica.parameters():
            p.requires_grad_(p.is_floating_point())
            random = torch.randn(p.shape, generator=generator).to(p)
            wide = p.ndim > 1 and p[0].numel() > 0
            p.copy_(random / p[0].numel() ** 0.5 if wide else 1 + random / 4)
    return replica


def _noise(example: Any) -> Any:
    """An example with other numbers where they are no indices."""
    generator = torch.Generator().manual_seed(0)
    return tree_map(
        lambda x: (
            torch.randn(x.shape, generator=generator).to(x)
            if isinstance(x, Tensor) and x.is_floating_point()
            else x
        ),
        example,
    )


def scale_channels(model: fx.GraphModule, channels: ChannelMap) -> ChannelScales:
    """Let every reader of channels multiply its weights by their factors, which are returned.

    In place; ``unscale_channels`` takes them out again.
    """
    readers = list(channels.ins)
    scales = ChannelScales(list(channels.sizes.values()), list(channels.ins.values()))
    like = next(model.parameters())
    home = "channels" + "_" * hasattr(model, "channels")
    model.add_module(home, scales.to(like))
    for name in readers:
        layer = model.get_submodule(name)
        layer.__class__ = _SCALED[type(layer)]
    first = next(node for node in model.graph.nodes if node.op != "placeholder")
    with model.graph.inserting_before(first):
        values = model.graph.call_module(home)
        scale = {
            model.get_submodule(name): model.graph.call_function(operator.getitem, (values, i))
            for i, name in enumerate(readers)
        }
    for node in model.graph.nodes:
        layer = module_of(model, node)
        if layer in scale:
            node.args, node.kwargs = (*node.all_input_nodes, scale[layer]), {}
    model.graph.eliminate_dead_code(has_effect)
    model.recompile()
    return scales


def unscale_channels(model: fx.GraphModule, channels: ChannelMap) -> None:
    """Undo ``scale_channels``, in place; factors are folded into the weights."""
    nodes = [n for n in model.graph.nodes if isinstance(module_of(model, n), ChannelScales)]
    for node in nodes:
        scales = cast(ChannelScales, model.get_submodule(str(node.target)))
        for picked in list(node.users):
            for user in list(picked.users):
                user.args = tuple(x for x in user.args if x is not picked)
            model.graph.erase_node(picked)
        model.graph.erase_node(node)
        for name in channels.ins:
            layer = model.get_submodule(name)
            layer.__class__ = _PLAIN[type(layer)]
        fold_factors(model, channels, list(scales.factors))
        model.delete_submodule(str(node.target))
    model.recompile()


@torch.no_grad()
def fold_factors(model: nn.Module, channels: ChannelMap, factors: Sequence[Tensor]) -> None:
    """Multiply the weights with which channels are read by factors, a vector for every group."""
    for name, index in channels.ins.items():
        weight = cast(Tensor, model.get_submodule(name).weight)
        flat = torch.cat([*(f.detach().to(weight) for f in factors), weight.new_ones(1)])
        weight.mul_(flat[index.to(weight.device)].view(1, -1, *[1] * (weight.ndim - 2)))


@torch.no_grad()
def remove_channels(
    model: nn.Module, channels: ChannelMap, flags: Sequence[Sequence[bool]]
) -> None:
    """Remove channels physically, in place; outputs stay equal if their factors are 0.

    ``flags`` tell for every channel of every group whether it stays. The model is one without
    ``scale_channels``.
    """
    kept = channels.kept(flags)
    for name, index in channels.outs.items():
        narrow_outputs(model.get_submodule(name), kept[index])
    for name, index in channels.ins.items():
        narrow_inputs(model.get_submodule(name), kept[index])


@torch.no_grad()
def channel_magnitudes(model: nn.Module, channels: ChannelMap) -> Iterator[Tensor]:
    """Estimate what readers get of every channel, from weights alone.

    The root of the product of two sums of squares, each relative to its mean over the group: of
    what makes a channel (the scale of batch normalisation, or the weights where there is none)
    and of the weights with which it is read. The mean square is 1.
    """
    made, scaled, read = (torch.zeros(sum(channels.sizes.values()) + 1) for _ in range(3))
    for name, index in channels.outs.items():
        layer: Any = model.get_submodule(name)
        norm = isinstance(layer, _BatchNorm | _InstanceNorm)
        if layer.weight is not None and (norm or not _passes(layer)):
            squares = layer.weight.float().cpu().square().reshape(len(index), -1).sum(1)
            total = scaled if norm else made
            total.index_add_(0, index % len(total), squares)
    for name, index in channels.ins.items():
        weight = cast(Tensor, model.get_submodule(name).weight).float().cpu()
        squares = weight.square().transpose(0, 1).reshape(len(index), -1).sum(1)
        read.index_add_(0, index % len(read), squares)
    start = 0
    for size in channels.sizes.values():
        part = slice(start, start + size)
        maker = scaled[part] if bool(scaled[part].any()) else made[part]
        energy = maker * read[part]
        yield (energy / energy.mean().clamp(min=1e-30)).sqrt()
        start += size
