"""The scaled sums inside a block, and the fast path that runs a whole block of a supernet.

The plain path in ``network.Block`` is the reference. Here the same maths runs over one buffer that
holds all node features of the block as planes (node, B, H, W, C):

* the sums of a level are ONE matrix product  factors (n x P) @ planes (P x BHWC);
* operations write their results into the buffer, so nothing is stacked or concatenated;
* the output convolution is a running product over the planes with the factors folded into its
  weights;
* the backward pass accumulates into one gradient buffer, and computes the gradients of weights or
  of scaling factors only where autograd asks for them.

Every operation keeps its own small autograd graph, so any registered operation works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dsonas.architecture import BlockGraph
from dsonas.buffers import BufferPool

NodeFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Level:
    """One level of a block, as the fast path runs it.

    Args:
        planes: buffer indices of its nodes, consecutive, as (first, end).
        positions: for each node, the index into the packed scaling factors of each plane before
            ``first``; dead connections point one past the last factor. (n, first), or empty for
            level 1, which reads the block input.
    """

    planes: tuple[int, int]
    positions: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Schedule:
    """A block graph laid out over the buffer: plane 0 is the input, then the kept nodes."""

    nodes: tuple[int, ...]
    levels: tuple[Level, ...]
    output_planes: tuple[int, ...]
    output_positions: tuple[int, ...]
    num_factors: int

    @classmethod
    def of(cls, graph: BlockGraph) -> Schedule:
        """Lay out a cleaned graph in which every kept node feeds something."""
        nodes = graph.kept_nodes
        index: dict[tuple[int, int], int] = {pair: i for i, pair in enumerate(graph.connections)}
        dead = len(index)

        def position(source: int, target: int) -> int:
            place = index[source, target]
            return place if graph.live[place] else dead

        levels, first = [], 1
        for number in range(1, graph.num_levels + 1):
            here = [node for node in nodes if graph.level(node) == number]
            before = (0, *nodes[: first - 1])
            rows = [tuple(position(s, t) for s in before) for t in here] if number > 1 else []
            if here:
                levels.append(Level((first, first + len(here)), tuple(rows)))
            first += len(here)
        feeding = graph.inputs[graph.output_node]
        output = tuple(index[node, graph.output_node] for node in feeding)
        planes = tuple(1 + nodes.index(node) for node in feeding)
        return cls(nodes, tuple(levels), planes, output, dead)


def fused_block(
    x: Tensor,
    factors: Tensor,
    output_weight: Tensor,
    schedule: Schedule,
    functions: Sequence[NodeFunction],
    parameters: Sequence[Sequence[Tensor]],
    pool: BufferPool,
) -> Tensor:
    """All nodes of a block and its output convolution (eq. 3 and 4), before the block's BN.

    Args:
        x: block input (B, C, H, W).
        factors: packed scaling factors of the block.
        output_weight: (C, K * C, 1, 1), K nodes that feed the output.
        schedule: the block's layout.
        functions: for each kept node its operation with BN, without the ReLU.
        parameters: for each kept node the tensors its function reads that may need gradients.
        pool: where the buffers come from.

    Returns:
        (B, C, H, W), channels_last.
    """
    flat = [tensor for group in parameters for tensor in group]
    call = _Call(schedule, tuple(functions), tuple(len(group) for group in parameters), pool)
    return _FusedBlock.apply(call, x, factors, output_weight, *flat)  # type: ignore[no-any-return]


@dataclass
class _Call:
    """What one forward pass leaves for its backward pass."""

    schedule: Schedule
    functions: tuple[NodeFunction, ...]
    group_sizes: tuple[int, ...]
    pool: BufferPool
    sums: list[Tensor] = field(default_factory=list)
    planes: Tensor | None = None
    graphs: list[tuple[Tensor, Tensor]] | None = None
    matrices: list[Tensor] | None = None
    folded: Tensor | None = None

    def level_matrices(self, factors: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """The scaling factors of each level >= 2 as (nodes, planes before it), zeros where dead."""
        padded = torch.cat([factors, factors.new_zeros(1)]).to(dtype)
        index = [torch.tensor(level.positions, device=factors.device) for level in self._mixed()]
        return [padded[places] for places in index]

    def _mixed(self) -> tuple[Level, ...]:
        return tuple(level for level in self.schedule.levels if level.positions)


class _FusedBlock(torch.autograd.Function):
    """The block as one node of the outer autograd graph."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, factors: Tensor, weight: Tensor, *flat: Tensor):
        dtype = _compute_dtype(x)
        batch, channels, height, width = x.shape
        shape = (1 + len(call.schedule.nodes), batch, height, width, channels)
        planes = call.pool.take(x, shape, dtype)
        start = x.to(dtype, memory_format=torch.channels_last).permute(0, 2, 3, 1)
        planes[0].copy_(start)
        matrices = call.level_matrices(factors, dtype)
        call.graphs, mixed = [], iter(matrices)
        for level in call.schedule.levels:
            first, end = level.planes
            sums = _mix(call, next(mixed), planes[:first]) if level.positions else None
            for plane in range(first, end):
                z = start if sums is None else sums[plane - first]
                _run_node(call, plane, z, planes)
        output_factors = factors[list(call.schedule.output_positions)]
        ctx.save_for_backward(factors, weight, *flat)
        call.planes, call.matrices = planes, matrices
        call.folded = _fold(weight, output_factors, dtype)
        ctx.call = call
        return _project(planes, call.schedule.output_planes, call.folded).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor):
        call: _Call = ctx.call
        factors, weight, *flat = ctx.saved_tensors
        planes = call.planes
        if planes is None or call.graphs is None or call.matrices is None or call.folded is None:
            raise RuntimeError("a fused block can be differentiated only once per forward pass")
        _, wants_x, wants_factors, wants_weight, *wants_flat = ctx.needs_input_grad
        outgoing = gradient.permute(0, 2, 3, 1).to(planes.dtype).contiguous()
        gradients = call.pool.take(planes, planes.shape, planes.dtype)
        _project_backward(gradients, call.schedule.output_planes, outgoing, call.folded)
        factor_gradient = factors.new_zeros(factors.numel() + 1) if wants_factors else None
        weight_gradient = None
        if wants_factors or wants_weight:
            weight_gradient = _output_gradients(
                call, planes, outgoing, weight, factors, factor_gradient
            )
        flat_gradients = _nodes_backward(
            call, planes, gradients, flat, wants_flat, wants_x, factor_gradient
        )
        x_gradient = gradients[0].clone().permute(0, 3, 1, 2) if wants_x else None
        call.pool.give(planes, gradients, *call.sums)
        call.planes = call.graphs = call.matrices = None
        call.sums.clear()
        return (
            None,
            x_gradient,
            None if factor_gradient is None else factor_gradient[:-1],
            weight_gradient if wants_weight else None,
            *flat_gradients,
        )


def _compute_dtype(x: Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _mix(call: _Call, matrix: Tensor, planes: Tensor) -> Tensor:
    """Sums (n, B, H, W, C) of planes (P, B, H, W, C), weighted by matrix (n, P)."""
    sums = call.pool.take(planes, (matrix.shape[0], *planes.shape[1:]), planes.dtype)
    call.sums.append(sums)
    torch.mm(matrix, planes.view(planes.shape[0], -1), out=sums.view(matrix.shape[0], -1))
    return sums


def _run_node(call: _Call, plane: int, z: Tensor, planes: Tensor) -> None:
    """Run an operation with its BN in a graph of its own; its ReLU writes into the buffer."""
    assert call.graphs is not None
    with torch.enable_grad():
        z = z.permute(0, 3, 1, 2).detach().requires_grad_()
        u = call.functions[plane - 1](z)
    torch.clamp(u.detach(), min=0, out=planes[plane].permute(0, 3, 1, 2))
    call.graphs.append((z, u))


def _fold(weight: Tensor, output_factors: Tensor, dtype: torch.dtype) -> Tensor:
    """Output weights with the factors in them, (K, C in, C out)."""
    channels = weight.shape[0]
    split = weight.view(channels, -1, channels).permute(1, 2, 0)
    return (split * output_factors.view(-1, 1, 1)).to(dtype).contiguous()


def _project(planes: Tensor, feeding: Sequence[int], folded: Tensor) -> Tensor:
    """Sum over k of planes[feeding[k]] (B, H, W, C) times folded[k] (C, C)."""
    rows = planes.view(planes.shape[0], -1, planes.shape[-1])
    out = torch.mm(rows[feeding[0]], folded[0])
    for plane, matrix in zip(feeding[1:], folded[1:], strict=True):
        out.addmm_(rows[plane], matrix)
    return out.view(planes.shape[1:])


def _project_backward(
    gradients: Tensor, feeding: Sequence[int], outgoing: Tensor, folded: Tensor
) -> None:
    """Fill the buffer of gradients (P, B, H, W, C) with those that come from the output."""
    rows = gradients.view(gradients.shape[0], -1, gradients.shape[-1])
    arriving = outgoing.view(-1, gradients.shape[-1])
    matrices = dict(zip(feeding, folded, strict=True))
    for plane, row in enumerate(rows):
        if plane in matrices:
            torch.mm(arriving, matrices[plane].t(), out=row)
        else:
            row.zero_()


def _output_gradients(
    call: _Call,
    planes: Tensor,
    outgoing: Tensor,
    weight: Tensor,
    factors: Tensor,
    factor_gradient: Tensor | None,
) -> Tensor:
    """Gradient of the output weight; adds that of the output factors to ``factor_gradient``."""
    channels = planes.shape[-1]
    feeding = call.schedule.output_planes
    rows = planes[1:] if len(feeding) == len(planes) - 1 else planes[list(feeding)]
    rows = rows.view(len(feeding), -1, channels)
    product = torch.bmm(
        rows.transpose(1, 2), outgoing.view(1, -1, channels).expand(rows.shape[0], -1, -1)
    ).to(weight.dtype)
    places = list(call.schedule.output_positions)
    if factor_gradient is not None:
        split = weight.view(channels, -1, channels).permute(1, 2, 0)
        factor_gradient[places] = (product * split).sum((1, 2))
    return (product * factors[places].view(-1, 1, 1)).permute(2, 0, 1).reshape(weight.shape)


def _nodes_backward(
    call: _Call,
    planes: Tensor,
    gradients: Tensor,
    flat: Sequence[Tensor],
    wants: Sequence[bool],
    wants_x: bool,
    factor_gradient: Tensor | None,
) -> list[Tensor | None]:
    """Walk the levels from the last to the first, filling ``gradients`` and the factors'."""
    found: list[Tensor | None] = [None] * len(flat)
    starts = [sum(call.group_sizes[:i]) for i in range(len(call.group_sizes))]
    matrices = list(call.matrices or ())
    for level in reversed(call.schedule.levels):
        first, end = level.planes
        if not level.positions and not wants_x and not any(wants):
            break  # the first block of a lambda step: nobody asks for anything below level 2
        arriving = gradients[0:0]
        if level.positions:
            arriving = call.pool.take(planes, planes[first:end].shape, planes.dtype)
        for plane in reversed(range(first, end)):
            span = range(starts[plane - 1], starts[plane - 1] + call.group_sizes[plane - 1])
            needed = [i for i in span if wants[i]]
            z_gradient, *rest = _node_gradients(
                call, plane, planes, gradients, [flat[i] for i in needed]
            )
            for i, value in zip(needed, rest, strict=True):
                found[i] = value
            target = arriving[plane - first] if level.positions else gradients[0]
            source = z_gradient.permute(0, 2, 3, 1)
            _ = target.copy_(source) if level.positions else target.add_(source)
        if level.positions:
            _mix_backward(matrices.pop(), level, planes, gradients, arriving, factor_gradient)
            call.pool.give(arriving)
    return found


def _node_gradients(
    call: _Call, plane: int, planes: Tensor, gradients: Tensor, parameters: list[Tensor]
) -> tuple[Tensor, *tuple[Tensor | None, ...]]:
    """Gradients of one operation's input and parameters; frees its graph."""
    assert call.graphs is not None
    z, u = call.graphs.pop()
    after_relu = planes[plane].permute(0, 3, 1, 2)
    incoming = gradients[plane].permute(0, 3, 1, 2)
    # The ReLU's mask is applied in place: nobody reads this plane's gradient again.
    torch.ops.aten.threshold_backward.grad_input(incoming, after_relu, 0, grad_input=incoming)
    if not u.requires_grad:  # an operation that does not look at its input, like a zero
        return torch.zeros_like(z), *[None] * len(parameters)
    z_gradient, *rest = torch.autograd.grad(
        u, [z, *parameters], incoming.to(u.dtype), allow_unused=True
    )
    return torch.zeros_like(z) if z_gradient is None else z_gradient, *rest


def _mix_backward(
    matrix: Tensor,
    level: Level,
    planes: Tensor,
    gradients: Tensor,
    arriving: Tensor,
    factor_gradient: Tensor | None,
) -> None:
    first = level.planes[0]
    rows = arriving.view(arriving.shape[0], -1)
    gradients[:first].view(first, -1).addmm_(matrix.t(), rows)
    if factor_gradient is not None:
        # A product with a tiny result and a huge inner size is slow; one product per image and a
        # sum over images is the same and twice as fast.
        batch = planes.shape[1]
        left = arriving.view(len(rows), batch, -1).transpose(0, 1)
        right = planes[:first].view(first, batch, -1).permute(1, 2, 0)
        product = torch.bmm(left, right).sum(0).to(factor_gradient.dtype)
        places = torch.tensor(level.positions, device=product.device)
        factor_gradient[places.view(-1)] = product.view(-1)
