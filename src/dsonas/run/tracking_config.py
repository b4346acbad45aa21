"""Which trackers a run reports to: the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

TRACKERS = ("tensorboard", "wandb", "mlflow")  # each also the name of a package and of an extra


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where a run is tracked besides its ``log.csv``.

    Args:
        trackers: names out of ``tensorboard``, ``wandb`` and ``mlflow``: a list, or a text with
            commas.

    Raises:
        ValueError: if a name is unknown.

    Example:
        >>> LogConfig(trackers="wandb,mlflow").trackers
        ('wandb', 'mlflow')
    """

    trackers: tuple[str, ...] | str = ()

    def __post_init__(self) -> None:
        given = self.trackers
        names = given.strip("[] ").split(",") if isinstance(given, str) else given
        cleaned = tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
        object.__setattr__(self, "trackers", cleaned)
        for name in cleaned:
            if name not in TRACKERS:
                known = ", ".join(TRACKERS)
                raise ValueError(f"log.trackers must be names out of {known}, got {name!r}")


def require_trackers(config: LogConfig) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        ValueError: naming the extra that brings it.

    Example:
        >>> require_trackers(LogConfig())
    """
    for name in config.trackers:
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is not the package
            raise ValueError(
                f"log.trackers {name} needs a package that is not installed: "
                f'pip install "dsonas[{name}]", or leave it out'
            )
