"""Choices in a user's model: what they compute, what is left of them, and what NNI's users met."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import dsonas
from dsonas import InputChoice, LayerChoice, Zero, apply_choices
from dsonas.sparse.applying import choices_of, chosen, finalise
from dsonas.sparse.choices import Choice


def conv(kernel: int = 3) -> nn.Module:
    return nn.Conv2d(4, 4, kernel, padding=kernel // 2)


class Net(nn.Module):
    """A nested choice, a label in two classes, a choice among inputs, a module without choices."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv()
        self.first = LayerChoice({"conv": conv(), "skip": nn.Identity()}, label="op")
        self.rest = nn.ModuleList([Part(), Part()])
        self.join = InputChoice(3, keep=2)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = self.stem(x)
        features = [x, self.first(x)]
        features.append(self.rest[1](self.rest[0](features[1])))
        return self.head(self.join(features).mean((2, 3)))


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = LayerChoice({"conv": conv(1), "skip": nn.Identity()}, label="op")
        inner = nn.Sequential(
            LayerChoice([conv(1), conv(3)], keep=None, normalise=False), nn.ReLU()
        )
        self.outer = LayerChoice({"deep": inner, "none": Zero(), "pool": nn.AvgPool2d(3, 1, 1)})

    def forward(self, x):
        return self.outer(self.op(x))


def images(batch: int = 6) -> torch.Tensor:
    return torch.rand(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(seed: int) -> Net:
    """A model with statistics and factors of its own."""
    torch.manual_seed(seed)
    model = Net()
    for _ in range(3):
        model(torch.rand(6, 4, 8, 8))
    with torch.no_grad():
        for places in choices_of(model).values():
            values = torch.rand(len(places[0][1].names)) + 0.5
            for _, choice in places:
                choice.factors.copy_(values)
    return model.eval()


def drop(model: nn.Module, left: dict[str, list[str]]) -> None:
    for label, places in choices_of(model).items():
        for _, choice in places:
            if label in left:
                choice.drop([name for name in choice.names if name not in left[label]])


LEFT = [
    {},
    {"op": ["skip"], "rest.0.outer": ["deep"], "rest.1.outer": ["none"], "join": ["0", "2"]},
    {"op": ["conv"], "rest.0.outer": ["pool"], "rest.1.outer": ["deep", "none"], "join": ["1"]},
]


@pytest.mark.parametrize("left", LEFT)
def test_the_final_network_computes_the_same_without_us(left: dict[str, list[str]]) -> None:
    model = trained(1)
    drop(model, left)
    expected = model(images())
    final = finalise(copy.deepcopy(model))
    torch.testing.assert_close(final(images()), expected, rtol=0, atol=1e-5)
    assert not [m for m in final.modules() if type(m).__module__.startswith("dsonas")]
    assert final.stem.weight.equal(model.stem.weight)
    assert [m for m in model.modules() if isinstance(m, Choice)]  # it is left as it was


@pytest.mark.parametrize("left", LEFT)
def test_a_fresh_instance_becomes_the_same_network(left: dict[str, list[str]], tmp_path: Path):
    model = trained(2)
    drop(model, left)
    final, choices = finalise(copy.deepcopy(model)), chosen(model)
    path = tmp_path / "found.pt"
    dsonas.SearchResult(final, choices, 0.0, choices, None).save(path)
    torch.testing.assert_close(apply_choices(Net(), path).eval()(images()), final(images()))
    fresh = apply_choices(Net(), dict(choices))
    fresh(images())
    fresh.load_state_dict(final.state_dict())
    torch.testing.assert_close(fresh.eval()(images()), final(images()))


def test_normalised_candidates_count_alike_whatever_their_scale() -> None:
    loud, quiet = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    with torch.no_grad():
        quiet.weight.copy_(loud.weight / 5)
        quiet.bias.copy_(loud.bias)
    parts = [LayerChoice([module])(images()) for module in (loud, quiet)]
    torch.testing.assert_close(parts[0].std(), parts[1].std(), rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    "kind", [list, tuple, nn.ModuleList, lambda ms: dict(zip("ab", ms, strict=True))]
)
def test_candidates_come_as_any_collection(kind) -> None:  # microsoft/nni#4542
    layer = LayerChoice(kind([conv(), nn.Identity()]))
    assert layer(images()).shape == images().shape
    assert layer.names in (("0", "1"), ("a", "b"))
    assert isinstance(layer[1], nn.Identity)


def test_names_may_be_what_modules_are_called_or_have_dots() -> None:
    layer = LayerChoice({"conv.3x3": conv(), "keys": nn.Identity(), "forward": conv(1)})
    layer(images())
    layer.drop(["keys", "forward"])
    final = layer.final()
    assert final(images()).shape == images().shape


NAMES = ["norm", "self", "class", "training", "code", "graph", "factors", "a b", "3", ""]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("live", [NAMES, NAMES[:1], NAMES[1:2], NAMES[4:6]])
def test_no_name_is_in_the_way_of_the_final_network(live: list[str], normalise: bool) -> None:
    torch.manual_seed(0)
    layers = {name: nn.Linear(4, 4) for name in NAMES}
    layer = LayerChoice(layers, keep=None, normalise=normalise)
    x = torch.randn(8, 4)
    layer(x)
    layer.drop([name for name in NAMES if name not in live])
    expected, final = layer.eval()(x), finalise(copy.deepcopy(layer)).eval()
    torch.testing.assert_close(final(x), expected)
    again = pickle.loads(pickle.dumps(final))
    assert list(again.state_dict()) == list(final.state_dict())
    torch.testing.assert_close(again(x), expected)


def test_depth_is_a_choice_with_identities() -> None:  # microsoft/nni#2337
    model = nn.Sequential(
        *(LayerChoice({"layer": conv(), "skip": nn.Identity()}) for _ in range(3))
    )
    drop(model, {"0": ["layer"], "1": ["skip"], "2": ["skip"]})
    assert sum(isinstance(m, nn.Conv2d) for m in finalise(model).modules()) == 1


def test_one_module_in_two_places_stays_one() -> None:
    choice = LayerChoice([conv(), conv(1)], label="x")
    model = nn.ModuleDict({"a": choice, "b": choice})
    choice.drop(["1"])
    final = finalise(model)
    assert final["a"] is final["b"]


@pytest.mark.parametrize("shape", [(6, 4), (6, 5, 4), (6, 4, 3, 3), (6, 4, 2, 2, 2)])
def test_features_of_any_rank(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(LayerChoice([nn.Identity(), nn.Tanh()], keep=None))
    for _ in range(3):
        model(torch.rand(shape))
    model.eval()
    x = torch.rand(shape)
    torch.testing.assert_close(finalise(copy.deepcopy(model))(x), model(x))


def test_final_networks_are_pickled_and_scripted_as_usual(tmp_path: Path) -> None:
    model = trained(3)
    drop(model, LEFT[2])
    final = finalise(model).eval()
    again = pickle.loads(pickle.dumps(final))
    torch.testing.assert_close(again(images()), final(images()))
    assert list(again.state_dict()) == list(final.state_dict())
    program = torch.export.export(final, (images(),))
    torch.testing.assert_close(program.module()(images()), final(images()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LayerChoice([]), "at least one candidate"),
        (lambda: LayerChoice([conv()], keep=0), "keep must be at least 1"),
        (lambda: LayerChoice({"a": conv(), "a_norm": conv()}), "two give 'a_norm': rename one"),
        (lambda: LayerChoice({"a.b": conv(), "_a_b": conv()}), "two give '_a_b': rename one"),
        (lambda: InputChoice(0), "at least one candidate"),
        (lambda: InputChoice(2)([images()]), "must get 2 features"),
        (lambda: apply_choices(Net(), {"what": ["x"]}), "'what'"),
        (lambda: apply_choices(Net(), {"op": ["conv"]}), "is missing"),
        (lambda: apply_choices(nn.Sequential(LayerChoice([conv()])), {"0": ["5"]}), "among 0"),
        (lambda: apply_choices(Net(), "/nowhere.pt"), "cannot be read"),
    ],
)
def test_mistakes_are_told_in_one_line(make, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_candidate_that_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match="candidates must be modules"):
        LayerChoice({"a": torch.relu})  # pyright: ignore[reportArgumentType]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"a": 1}, path)
    with pytest.raises(ValueError, match=r"SearchResult\.save wrote"):
        apply_choices(Net(), path)


def test_places_with_one_label_must_have_the_same_names() -> None:
    model = nn.ModuleDict(
        {"a": LayerChoice([conv()], label="x"), "b": LayerChoice({"c": conv()}, label="x")}
    )
    with pytest.raises(ValueError, match=r"'a' and 'b'.*label 'x'"):
        choices_of(model)


def test_plain_names_and_an_example_make_any_network(tmp_path: Path) -> None:
    """Of sequences, whose normalisation cannot be told from the layers."""

    def fresh() -> nn.Module:
        layers = {"linear": nn.Linear(4, 4), "deep": nn.Sequential(nn.Linear(4, 4), nn.GELU())}
        return nn.Sequential(LayerChoice(layers, label="x", keep=None), nn.Linear(4, 2))

    model, x = fresh(), torch.randn(3, 6, 4)
    model(x)
    found = finalise(copy.deepcopy(model))
    plain = json.loads(json.dumps(chosen(model)))
    again = apply_choices(model := fresh(), plain, x)
    assert model.training
    again.load_state_dict(found.state_dict())
    torch.testing.assert_close(again.eval()(x), found.eval()(x))
