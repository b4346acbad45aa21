"""The choices of a model as a whole: found, named, applied, and kept in a file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsonas._utils import write_atomically
from dsonas.sparse.choices import Choice, Features, LayerChoice
from dsonas.sparse.recording import arguments, copied, evaluating, unwrap


def choices_of(model: nn.Module) -> dict[str, list[tuple[str, Choice]]]:
    """Find the choices of a model: by label, every place with its name in the model.

    A choice without a label is labelled by its place.

    Raises:
        ValueError: if places with one label differ in their candidates or in ``keep``.
    """
    found: dict[str, list[tuple[str, Choice]]] = {}
    for place, module in model.named_modules():
        if isinstance(module, Choice):
            found.setdefault(module.label or place, []).append((place, module))
    for label, places in found.items():
        first_place, first = places[0]
        for place, other in places[1:]:
            for name in ("names", "keep"):
                if getattr(first, name) != getattr(other, name):
                    what = "candidates" if name == "names" else "keep"
                    raise ValueError(
                        f"the choices {first_place!r} and {place!r} have the label {label!r}, so "
                        f"their {what} must be the same, got {getattr(first, name)} and "
                        f"{getattr(other, name)}: give them different labels"
                    )
    return found


class Choices(dict[str, list[str]]):
    """The names that are left, by label, and what the candidates of every place give."""

    def __init__(
        self,
        chosen: Mapping[str, Sequence[str]],
        features: Mapping[str, Mapping[str, Features]] | None = None,
    ) -> None:
        super().__init__({label: list(names) for label, names in chosen.items()})
        self.features = features or {}


def chosen(model: nn.Module) -> Choices:
    """Read what is left of the choices of a model."""
    places = choices_of(model)
    features = {
        place: module.features()
        for found_places in places.values()
        for place, module in found_places
        if isinstance(module, LayerChoice) and module.normalise
    }
    return Choices({label: found[0][1].live for label, found in places.items()}, features)


def finalise(model: nn.Module) -> nn.Module:
    """Put ordinary modules in the place of all choices of a model; weights are shared with it.

    Returns the model, or what takes its place if it is a choice itself.
    """
    done: dict[nn.Module, nn.Module] = {}

    def final(module: nn.Module) -> nn.Module:
        if module not in done:
            done[module] = module
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = final(child)
            if isinstance(module, Choice):
                done[module] = module.final()
        return done[module]

    return final(model)


def apply_choices(
    model: nn.Module, choices: Mapping[str, Sequence[str]] | str | Path, example: Any = None
) -> nn.Module:
    """Make the final network from a fresh instance of a model with choices.

    Args:
        model: the user's class, with ``LayerChoice`` and ``InputChoice``; it is left as it is.
        choices: the names that are left by label, as ``SearchResult.choices`` has them; or the
            file that ``SearchResult.save`` wrote, whose weights are loaded then.
        example: an input, a mapping of keyword arguments, or a tuple of inputs: by it the
            normalisations are made. Only plain names, such as from JSON, may need it, where
            candidates end with features other than images or rows; ``SearchResult`` knows them.

    Returns:
        An ordinary module without anything of dsonas.

    Raises:
        ValueError: if a choice is missing, or names a candidate that is not there.

    Example:
        >>> layers = {"a": nn.Linear(2, 2), "b": nn.Identity()}
        >>> fresh = nn.Sequential(LayerChoice(layers, label="x"))
        >>> apply_choices(fresh, {"x": ["a"]})(torch.rand(3, 2)).shape
        torch.Size([3, 2])
    """
    weights = None
    if isinstance(choices, str | Path):
        choices, weights = load_choices(choices)
    model = copied(unwrap(model))
    if example is not None:  # running makes the normalisations; statistics stay as they are
        args, kwargs = arguments(model, example)
        with torch.no_grad(), evaluating(model):
            model(*args, **kwargs)
    places = choices_of(model)
    unknown = sorted(choices.keys() - places.keys())
    if unknown:
        raise ValueError(
            f"choices must be labels of the model, {', '.join(places) or 'which has none'}, got "
            f"{unknown[0]!r}"
        )
    for label, found in places.items():
        if found[0][1] not in set(model.modules()):
            continue  # it went with a candidate around it
        if label not in choices:
            raise ValueError(f"choices must have the label {label!r}, but it is missing")
        for place, module in found:
            _keep(module, label, choices[label])
            if isinstance(module, LayerChoice) and isinstance(choices, Choices):
                module.prepare(choices.features.get(place, {}))
    model = finalise(model)
    if weights is not None:
        model.load_state_dict(weights)
    return model


def _keep(module: Choice, label: str, names: Sequence[str]) -> None:
    """Remove all candidates of a choice but some; refuses names that are none."""
    if not names or not set(names) <= set(module.names):
        raise ValueError(
            f"choice {label!r} must be among {', '.join(module.names)}, got {list(names)}"
        )
    module.drop([name for name in module.names if name not in names])


def save_choices(path: str | Path, choices: Choices, model: nn.Module) -> None:
    """Write choices and the weights of the final network to one file, without pickled code."""
    buffer = io.BytesIO()
    value = {
        "format": "dsonas-choices",
        "choices": dict(choices),
        "features": {
            place: {name: tuple(known) for name, known in found.items()}
            for place, found in choices.features.items()
        },
        "weights": model.state_dict(),
    }
    torch.save(value, buffer)
    write_atomically(Path(path), buffer.getvalue())


def load_choices(path: str | Path) -> tuple[Choices, dict[str, Tensor]]:
    """Read what ``save_choices`` wrote; a ValueError if it is something else."""
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"choices {path} cannot be read: {error.strerror or error}") from None
    except Exception:  # a damaged archive makes the reader fail in any way
        value = None
    if not isinstance(value, dict) or value.get("format") != "dsonas-choices":
        raise ValueError(f"{path} must be a file that SearchResult.save wrote, but it is not")
    features = {
        place: {name: Features(*known) for name, known in found.items()}
        for place, found in value["features"].items()
    }
    return Choices(value["choices"], features), value["weights"]
