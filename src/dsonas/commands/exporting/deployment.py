"""A trained network with everything that travels with it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dsonas.cost import architecture_cost
from dsonas.nn import Network
from dsonas.run import Preprocessing


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What is exported.

    Args:
        network: the final network, in evaluation mode.
        preprocessing: class names and normalisation.
        folded: whether ``fold_batch_norms`` has made the network.
        data: the data set it was trained on, for the reader.
        test_error: in percent; None if it is not known.
        seed: of the run; None if it is not known.
    """

    network: Network
    preprocessing: Preprocessing
    folded: bool = False
    data: str = "unknown"
    test_error: float | None = None
    seed: int | None = None

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return architecture_cost(self.network.architecture).macs

    @property
    def params(self) -> int:
        """Parameters of the network as it is exported."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def metadata(self) -> dict[str, Any]:
        """Class names, preprocessing and origin as values that JSON can hold."""
        import dsonas

        skeleton = self.network.architecture.skeleton
        return {
            **asdict(self.preprocessing),
            "image_size": skeleton.image_size,
            "input_channels": skeleton.input_channels,
            "macs": self.macs,
            "params": self.params,
            "test_error": self.test_error,
            "data": self.data,
            "seed": self.seed,
            "dsonas": dsonas.__version__,
        }
