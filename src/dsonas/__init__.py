"""dsonas: neural architecture search by direct sparse optimisation (arXiv 1811.01567)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dsonas.any_model import scale_connections
    from dsonas.architecture import Architecture, BlockGraph, Skeleton
    from dsonas.budgets import Budget, fit_width
    from dsonas.costs import Cost, architecture_cost
    from dsonas.data import DataConfig, load_data
    from dsonas.engine import Engine, EngineConfig
    from dsonas.model_pruning import prune_model
    from dsonas.network import Network, build
    from dsonas.operations import register_operation
    from dsonas.proximal import ProximalNAG, soft_threshold
    from dsonas.search_config import PretrainConfig, SearchConfig
    from dsonas.search_stages import SearchResult
    from dsonas.searching import search
    from dsonas.shrinking import shrink
    from dsonas.spaces import SearchSpace
    from dsonas.training import TrainConfig

_HOME = {
    "Architecture": "architecture",
    "BlockGraph": "architecture",
    "Budget": "budgets",
    "Cost": "costs",
    "DataConfig": "data",
    "Engine": "engine",
    "EngineConfig": "engine",
    "Network": "network",
    "PretrainConfig": "search_config",
    "ProximalNAG": "proximal",
    "SearchConfig": "search_config",
    "SearchResult": "search_stages",
    "SearchSpace": "spaces",
    "Skeleton": "architecture",
    "TrainConfig": "training",
    "architecture_cost": "costs",
    "build": "network",
    "fit_width": "budgets",
    "load_data": "data",
    "prune_model": "model_pruning",
    "register_operation": "operations",
    "scale_connections": "any_model",
    "search": "searching",
    "shrink": "shrinking",
    "soft_threshold": "proximal",
}

__all__ = [  # noqa: RUF022 - what one reads first comes first
    "search",
    "build",
    "load_data",
    "fit_width",
    "architecture_cost",
    "register_operation",
    "scale_connections",
    "prune_model",
    "shrink",
    "soft_threshold",
    "ProximalNAG",
    "SearchSpace",
    "Skeleton",
    "Architecture",
    "BlockGraph",
    "Network",
    "Budget",
    "Cost",
    "DataConfig",
    "PretrainConfig",
    "SearchConfig",
    "SearchResult",
    "TrainConfig",
    "Engine",
    "EngineConfig",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dsonas' has no attribute {name!r}")
    return getattr(import_module(f"dsonas.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
