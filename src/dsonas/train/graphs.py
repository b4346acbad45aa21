"""The passes of a search step as a CUDA graph: one launch in place of some thousand calls.

Nothing of this has run on a GPU. The tests put recorded CPU calls in the place of a CUDA graph.

A graph holds the forward and the backward pass, which are a function of the batch, the parameters
and the buffers alone. Whatever changes from step to step stays outside of it, as it is without
graphs: augmentation, clipping, the optimizer with its learning rate, the proximal step, the check
that gradients are finite, removal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from dsonas.nn import ScaledModule

logger = logging.getLogger(__name__)

WARM = 3  # ordinary steps of one kind before a capture: kernels are chosen, index tensors sent
Found = tuple[Tensor, Tensor]  # the loss and the logits
Passes = Callable[[Tensor, Tensor], Found]


class CudaCapture:
    """CUDA graphs; those that are there together share their memory."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def aside(self, run: Callable[[], Found]) -> Found:
        """Run on the stream of the captures, as torch asks for what comes before one."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            found = run()
        current.wait_stream(self._stream)
        return found

    def capture(self, run: Callable[[], Found]) -> tuple[Found, Callable[[], None]]:
        """Take down what a function asks the device to do, without doing it.

        Returns the tensors that it gives, still without values, and a function that does it all
        again in the same memory. One graph may overwrite what another has left: nobody replays it
        before that is read.
        """
        graph = torch.cuda.CUDAGraph()
        pool = next((other.pool() for other in self._graphs), None)
        with torch.cuda.graph(graph, pool=pool, stream=self._stream):
            found = run()
        self._graphs.add(graph)
        return found, graph.replay


class _Shape(NamedTuple):
    """What must stay for a graph to stay right."""

    network: nn.Module
    structure: object
    images: tuple[Any, ...]

    def same_network(self, other: _Shape) -> bool:
        return self.network is other.network and self.structure is other.structure


class _Graph(NamedTuple):
    """A captured step: its input, what it finds, and the gradients that it leaves."""

    shape: _Shape
    images: Tensor
    labels: Tensor
    found: Found
    gradients: list[tuple[nn.Parameter, Tensor]]
    replay: Callable[[], None]

    def run(self, images: Tensor, labels: Tensor) -> Found:
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.replay()
        for parameter, gradient in self.gradients:
            parameter.grad = gradient
        loss, logits = self.found
        return loss.clone(), logits.clone()  # the next replay overwrites them


class StepGraphs:
    """The graphs of a search's weight and factor steps, each captured anew after a rebuild.

    A step is an ordinary one before a capture (``WARM`` times), with a batch of another shape than
    the graph's, and for ever after a capture that failed, of which one line in the log says why.
    What a network decides in Python, it decides at the capture, and again after the next rebuild.
    """

    def __init__(self, capture: CudaCapture) -> None:
        self._capture = capture
        self._graphs: dict[str, _Graph] = {}
        self._last: dict[str, tuple[_Shape, int]] = {}
        self._refused: set[str] = set()

    def run(
        self, part: str, network: ScaledModule, passes: Passes, images: Tensor, labels: Tensor
    ) -> Found:
        """Do what ``passes`` does: leave gradients in ``part`` of the network, in training mode.

        ``part`` is ``weights`` or ``factors``, the only parameters that want gradients. Those that
        are there already are replaced, not added to.
        """
        shape = _Shape(network, network.structure(), (images.shape, images.dtype, labels.shape))
        graph = self._graphs.get(part)
        if graph and not graph.shape.same_network(shape):
            graph = self._graphs.pop(part) and None  # frees what the larger supernet needed
        if graph and graph.shape.images == shape.images:
            return graph.run(images, labels)
        if part in self._refused:
            return passes(images, labels)
        if self._repeats(part, shape) <= WARM:
            return self._capture.aside(lambda: passes(images, labels))
        parameters = network.weights() if part == "weights" else network.factors()
        if graph := self._captured(part, shape, parameters, passes, images.clone(), labels.clone()):
            return graph.run(images, labels)
        return passes(images, labels)

    def forget(self) -> None:
        """Free all graphs, at the end of a search: they hold the memory of a whole step."""
        self._graphs.clear()
        self._last.clear()

    def _repeats(self, part: str, shape: _Shape) -> int:
        """How many steps in a row have been of this shape."""
        last, count = self._last.get(part, (shape, 0))
        alike = last.same_network(shape) and last.images == shape.images
        self._last[part] = shape, count + 1 if alike else 1
        return self._last[part][1]

    def _captured(
        self,
        part: str,
        shape: _Shape,
        parameters: Sequence[nn.Parameter],
        passes: Passes,
        images: Tensor,
        labels: Tensor,
    ) -> _Graph | None:
        """A graph of a step; None if there can be none."""
        self._graphs.pop(part, None)
        _forget_gradients(parameters)  # a graph that found some would add to them
        try:
            found, replay = self._capture.capture(lambda: passes(images, labels))
        except RuntimeError as error:
            _forget_gradients(parameters)
            self._refused.add(part)
            reason = " ".join(str(error).split())[:200]
            logger.warning("engine.graphs: steps of %s without a CUDA graph (%s)", part, reason)
            return None
        gradients = [(p, p.grad) for p in parameters if p.grad is not None]
        self._graphs[part] = _Graph(shape, images, labels, found, gradients, replay)
        return self._graphs[part]


def _forget_gradients(parameters: Any) -> None:
    for parameter in parameters:
        parameter.grad = None
