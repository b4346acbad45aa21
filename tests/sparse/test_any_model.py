"""Scaling factors on the connections of any model, and their physical removal."""

import copy
import io
import operator
import random
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torch.utils.benchmark import Timer

import dsonas
from dsonas.sparse.any_model import list_connections
from dsonas.sparse.connections import ScaledConcat, ScaledSum, normalise_factors, scaling_factors

CHANNELS = 4
pytestmark = pytest.mark.filterwarnings("ignore:only batch normalisation reads:UserWarning")


class RandomNetwork(nn.Module):
    """A random program over features: layers, sums in every spelling, concatenations."""

    def __init__(self, seed: int, num_steps: int = 7) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.layers = nn.ModuleDict()
        self.program = []
        for i in range(num_steps):
            kind = rng.choice(("layer", "sum", "sum", "cat"))
            sources = [rng.randrange(i + 1) for _ in range(rng.choice((2, 2, 3)))]
            name = f"step{i}"
            if kind == "layer":
                sources = sources[:1]
                self.layers[name] = _random_layer(rng, CHANNELS)
            elif kind == "cat":
                self.layers[name] = _random_layer(rng, CHANNELS * len(sources))
            self.program.append((kind, rng.choice(("plus", "add", "inplace", "list")), sources))
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x):
        features = [x]
        for i, (kind, spelling, sources) in enumerate(self.program):
            inputs = [features[source] for source in sources]
            if kind == "sum":
                y = _add(inputs, spelling)
            else:
                y = inputs[0] if kind == "layer" else torch.cat(inputs, 1)
                y = self.layers[f"step{i}"](y)
            features.append(y)
        y = features[-1] + features[-2] + features[-3]
        return self.head(F.dropout(self.norm(y).mean((2, 3)), 0.5, training=self.training))


def _add(inputs, spelling):
    if spelling == "list":
        return sum(inputs)
    total = inputs[0] * 1 if spelling == "inplace" else inputs[0]
    for x in inputs[1:]:
        if spelling == "inplace":
            total += x
        else:
            total = torch.add(total, x) if spelling == "add" else total + x
    return total


def _random_layer(rng: random.Random, inputs: int) -> nn.Module:
    kernel = rng.choice((1, 3))
    conv = nn.Conv2d(inputs, CHANNELS, kernel, padding=kernel // 2, bias=rng.random() < 0.5)
    pre = [nn.BatchNorm2d(inputs), nn.ReLU()] if rng.random() < 0.4 else []
    post = [nn.BatchNorm2d(CHANNELS)] if rng.random() < 0.5 else []
    act = [rng.choice((nn.ReLU(inplace=True), nn.SiLU(), nn.AvgPool2d(3, 1, 1)))]
    return nn.Sequential(*pre, conv, *post, *(act if rng.random() < 0.7 else []))


def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and statistic a value that matters, so that no error can hide."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model


def draw_factors(model: nn.Module, seed: int, dead: float) -> None:
    """Random factors, a share of them 0, but not all of one sum."""
    generator = torch.Generator().manual_seed(seed)
    for factors in scaling_factors(model):
        drawn = torch.rand(len(factors), generator=generator)
        values = 0.5 + torch.rand(len(factors), generator=generator)
        factors.data = torch.where((drawn > dead) | (drawn == drawn.max()), values, 0.0)


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def assert_same(a: nn.Module, b: nn.Module, x: torch.Tensor) -> None:
    a.eval(), b.eval()
    before, after = a(x), b(x)
    assert before.std() > 1e-4  # else an error could not be seen
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))


@pytest.mark.parametrize("seed", range(24))
def test_random_models_stay_equal_when_scaled_and_when_pruned(seed: int):
    model = randomise(RandomNetwork(seed), seed)
    x = torch.randn(2, CHANNELS, 6, 6)
    scaled = dsonas.scale_connections(model, x)
    assert_same(model, scaled, x)
    for dead in (0.0, 0.4, 0.7):
        draw_factors(scaled, 100 * seed, dead)
        pruned = dsonas.prune_model(scaled, x)
        assert_same(scaled, pruned, torch.randn(3, CHANNELS, 6, 6))
        assert num_params(pruned) <= num_params(model) + 2 * CHANNELS * len(model.program)
        assert not scaling_factors(pruned)


def _vision_transformer(num_classes: int = 5) -> nn.Module:
    return zoo.VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=num_classes)


def _dense_net(num_classes: int = 5) -> nn.Module:
    return zoo.DenseNet(8, (3, 2), 16, num_classes=num_classes)


MODELS = {
    "resnet18": (zoo.resnet18, 8),
    "mobilenet_v3_small": (zoo.mobilenet_v3_small, 6),
    "densenet": (_dense_net, 5),
    "vision_transformer": (_vision_transformer, 6),
    "squeezenet": (zoo.squeezenet1_1, 8),
}


@pytest.mark.parametrize("name", MODELS)
def test_torchvision_models(name: str):
    make, num_joins = MODELS[name]
    model = randomise(make(num_classes=5), 0)
    x = torch.randn(2, 3, 32, 32)
    scaled = dsonas.scale_connections(model, x)
    assert len(scaling_factors(scaled)) == num_joins
    assert_same(model, scaled, x)
    draw_factors(scaled, 1, dead=0.5)
    pruned = dsonas.prune_model(scaled, x)
    assert num_params(pruned) < 0.97 * num_params(model)
    assert_same(scaled, pruned, torch.randn(3, 3, 32, 32))


class Residual(nn.Module):
    """Two branches and a shortcut."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(x + self.first(x) + self.second(x))


def test_a_dead_branch_goes_and_a_single_live_input_is_no_sum():
    model = dsonas.scale_connections(Residual(), torch.zeros(2, 8))
    (factors,) = scaling_factors(model)
    factors.data = torch.tensor([0.0, 0.0, 2.0])
    pruned = dsonas.prune_model(model, torch.zeros(2, 8))
    assert set(pruned.state_dict()) == {f"{m}.{p}" for m in ("second", "head") for p in
                                        ("weight", "bias")}  # fmt: skip
    assert [n.op for n in pruned.graph.nodes] == [
        "placeholder", "call_module", "call_module", "output"
    ]  # fmt: skip
    torch.testing.assert_close(pruned.second.weight, 2 * model.second.weight)
    factors.data = torch.tensor([1.0, 0.0, 0.0])  # what is left is the head
    assert num_params(dsonas.prune_model(model, torch.zeros(2, 8))) == 8 * 3 + 3


def test_the_given_models_are_not_changed():
    net = randomise(RandomNetwork(3), 3).train()
    before = copy.deepcopy(net.state_dict())
    x = torch.randn(2, CHANNELS, 6, 6)
    scaled = dsonas.scale_connections(net, x)
    draw_factors(scaled, 0, 0.5)
    factors = [factor.clone() for factor in scaling_factors(scaled)]
    scaled.layers.eval()  # frozen, say
    pruned = dsonas.prune_model(scaled, x)
    assert scaled.training
    assert pruned.training
    assert pruned.norm.training
    assert not any(part.training for part in pruned.layers.modules() if not list(part.children()))
    assert net.training
    assert list(net.state_dict()) == list(before)
    for name, value in before.items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=0, atol=0)
    for old, new in zip(factors, scaling_factors(scaled), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0)


def test_weights_are_shared_and_factors_get_gradients():
    net = Residual()
    model = dsonas.scale_connections(net, torch.zeros(2, 8))
    assert {id(p) for p in net.parameters()} < {id(p) for p in model.parameters()}
    model(torch.randn(4, 8)).square().sum().backward()
    (factors,) = model.scaling.parameters()
    assert bool((factors.grad != 0).all())


def test_code_that_depends_on_the_mode_follows_it():
    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = 0.5

        def forward(self, x, mask=None, *, gain=1.0):
            if mask is not None:
                x = x * mask
            y = F.dropout(x, self.rate if self.training else 0.0, training=True)
            return gain * (x + F.dropout(y, 0.3, training=self.training))

    x = torch.randn(64, 8)
    model = dsonas.scale_connections(Dropping(), x)
    pruned = dsonas.prune_model(model, x)
    for traced in (model, pruned, copy.deepcopy(pruned)):
        traced.train()
        assert not torch.equal(traced(x), traced(x))
        traced.eval()
        torch.testing.assert_close(traced(x), 2 * x)


def test_dense_channels_are_dropped_from_the_layers_that_read_them():
    model = randomise(_dense_net(), 0)
    x = torch.randn(2, 3, 32, 32)
    scaled = dsonas.scale_connections(model, x)
    last = scaling_factors(scaled)[-1]
    last.data = torch.tensor([0.0, 1.3, 0.0])
    pruned = dsonas.prune_model(scaled, x)
    assert pruned.classifier.in_features == 8
    assert pruned.features.norm5.num_features == 8
    assert_same(scaled, pruned, x)


class RepVGG(nn.Module):
    """Three branches, each normalised, in one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.three = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.BatchNorm2d(8))
        self.one, self.same = (
            nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)),
            nn.BatchNorm2d(8),
        )

    def forward(self, x):
        return F.relu(self.same(x) + self.one(x) + self.three(x))


class Scaled(nn.Module):
    """As in ConvNeXt: a residual stream, LayerScale, and a norm behind the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3, 1, 1) for _ in range(2)])
        self.gammas = nn.ParameterList([torch.rand(8, 1, 1) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)
        self.stem = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.stem(x)
        for conv, gamma in zip(self.convs, self.gammas, strict=True):
            x = x + conv(x).abs() * gamma
        return self.head(self.norm(x.mean((2, 3))))


class Standardised(nn.Conv2d):
    """A layer that looks linear in its weight and is not."""

    def forward(self, x):
        return self._conv_forward(
            x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias
        )


class Deceptive(nn.Module):
    """Nothing that could take a factor, though two layers look so."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Standardised(8, 8, 1, bias=False), Standardised(8, 8, 1, bias=False)

    def forward(self, x):
        return (self.a(x) + self.b(x)).sigmoid()


TAKING = {  # the multiplications that stay
    "dense": (lambda: zoo.DenseNet(8, (3, 2), 16, num_classes=5), (2, 3, 32, 32), 0),
    "vision_transformer": (_vision_transformer, (2, 3, 32, 32), 0),
    "mobilenet": (lambda: zoo.mobilenet_v3_small(num_classes=5), (2, 3, 32, 32), 0),
    "swin": (lambda: zoo.SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4]), (2, 3, 32, 32), None),
    "repvgg": (RepVGG, (2, 8, 6, 6), 0),
    "layer scale": (Scaled, (2, 8, 6, 6), 0),
    "standardised": (Deceptive, (2, 8, 6, 6), 2),
}


@pytest.mark.parametrize("name", TAKING)
@pytest.mark.parametrize("dead", [0.0, 0.4])
def test_layers_take_the_factors(name: str, dead: float):
    make, size, left = TAKING[name]
    model, x = randomise(make(), 0), torch.randn(size)
    scaled = dsonas.scale_connections(model, x)
    draw_factors(scaled, 3, dead)
    pruned = dsonas.prune_model(scaled, x)
    assert_same(scaled, pruned, torch.randn(size))
    found = [
        node
        for node in pruned.graph.nodes
        if node.target is operator.mul and any(isinstance(a, float) for a in node.args)
    ]
    if not dead and left is not None:
        assert len(found) == left
    elif left == 0:
        assert not found
    for model in (scaled, pruned):  # in training too, where batch statistics count
        model.train()
    if name in ("repvgg", "layer scale", "standardised"):
        torch.testing.assert_close(pruned(x), scaled(x), rtol=1e-4, atol=1e-5)


class Joined(nn.Module):
    """A concatenation read by a padded convolution, behind an activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 1)
        self.right = nn.Conv2d(3, 2, 1)
        self.activation = activation
        self.out = nn.Conv2d(6, 5, 3, padding=1)

    def forward(self, x):
        return self.out(self.activation(torch.cat([self.left(x), self.right(x)], 1)))


@pytest.mark.parametrize(
    ("activation", "channels"),
    [(nn.ReLU(inplace=True), 4), (nn.Identity(), 4), (nn.Sigmoid(), 6), (nn.Softmax(1), 6)],
)
def test_dead_channels_stay_as_zeros_where_dropping_them_is_not_exact(activation, channels):
    x = torch.randn(2, 3, 5, 5)
    model = dsonas.scale_connections(Joined(activation), x)
    scaling_factors(model)[0].data = torch.tensor([1.5, 0.0])
    pruned = dsonas.prune_model(model, x)
    assert pruned.out.in_channels == channels
    assert "right.weight" not in pruned.state_dict()
    assert_same(model, pruned, torch.randn(1, 3, 7, 9))


class Normalised(nn.Module):
    """As in DenseNet: features and what a layer makes of them, then BN, ReLU, a pool, 1x1."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.pool, self.out = nn.BatchNorm2d(8), pool, nn.Conv2d(8, 2, 1)

    def forward(self, x):
        left = F.relu(self.left(x))
        joined = torch.cat([left, self.right(left)], 1)
        return self.out(self.pool(F.relu(self.norm(joined))))


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(7, 1, 3)])
@pytest.mark.parametrize("size", [1, 2])
def test_a_small_example_does_not_hide_the_borders_of_a_pool(pool, size: int):
    x = torch.randn(2, 3, size, size)
    model = dsonas.scale_connections(randomise(Normalised(pool), 0), x)
    scaling_factors(model)[0].data = torch.tensor([1.0, 0.0])
    pruned = dsonas.prune_model(model, x)
    assert_same(model, pruned, torch.randn(2, 3, 12, 12))


@pytest.mark.parametrize("factors", [(-0.5, 1.0), (1.0, -0.5), (0.5, 1.0)])
def test_negative_factors_before_batch_normalisation_stay(factors):
    x = torch.randn(2, 3, 4, 4)
    model = dsonas.scale_connections(randomise(Normalised(nn.Identity()), 0), x)
    scaling_factors(model)[0].data = torch.tensor(factors)
    assert_same(model, dsonas.prune_model(model, x), x)


def test_a_dead_sum_becomes_what_it_always_gives_at_any_batch_size():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.after = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return x * torch.sigmoid(self.after(self.a(x) + self.b(x)))

    x = torch.randn(2, 3, 5, 5)
    model = dsonas.scale_connections(Gated(), x)
    scaling_factors(model)[0].data.zero_()
    pruned = dsonas.prune_model(model, x)
    assert num_params(pruned) == 0
    assert_same(model, pruned, torch.randn(7, 3, 5, 5))


def test_modules_written_with_scaled_sums_are_pruned_too():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.add = nn.Linear(4, 4), nn.Linear(4, 4), ScaledSum(2)
            self.join = ScaledConcat(2)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            y = self.add(self.a(x), self.b(x))
            return self.head(self.join(y, x))

    model = Own()
    model.add.factors.data = torch.tensor([0.0, 1.0])
    model.join.factors.data = torch.tensor([0.5, 0.0])
    x = torch.randn(3, 4)
    pruned = dsonas.prune_model(model, x)
    assert_same(model, pruned, x)
    assert num_params(pruned) == (4 * 4 + 4) + (4 * 2 + 2)


def test_a_pruned_model_is_an_ordinary_module(tmp_path):
    model = randomise(RandomNetwork(5), 5)
    x = torch.randn(2, CHANNELS, 6, 6)
    scaled = dsonas.scale_connections(model, x)
    draw_factors(scaled, 5, 0.5)
    pruned = dsonas.prune_model(scaled, x).eval()
    assert "dsonas" not in pruned.code
    assert not any(type(module).__module__.startswith("dsonas") for module in pruned.modules())
    file = io.BytesIO()
    torch.save(pruned, file)
    assert b"dsonas" not in file.getvalue()
    file.seek(0)
    assert_same(pruned, torch.load(file, weights_only=False), x)
    program = torch.export.export(pruned, (x,))
    torch.testing.assert_close(program.module()(x), pruned(x))
    for part in (model, pruned):
        part.train()(x).square().sum().backward()
    unread = {name for name, p in model.named_parameters() if p.grad is None}
    assert {name for name, p in pruned.named_parameters() if p.grad is None} <= unread


def test_doubles_and_several_inputs_and_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x, y):
            total = self.a(x) + self.b(y)
            return {"total": total, "other": (total.relu() + x, y)}

    example = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    model = dsonas.scale_connections(Two().double(), example)
    first, second = scaling_factors(model)
    first.data, second.data = torch.tensor([0.0, 0.7]), torch.tensor([0.3, 1.0])
    pruned = dsonas.prune_model(model, example)
    assert num_params(pruned) == 20
    torch.testing.assert_close(pruned(*example), model(*example), rtol=1e-12, atol=1e-12)


def test_pruning_lowers_the_latency():
    branches = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(8))

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.branches = branches

        def forward(self, x):
            return sum([branch(x) for branch in self.branches])

    x = torch.randn(4, 16, 32, 32)
    model = Wide().eval()
    scaled = dsonas.scale_connections(model, x)
    scaling_factors(scaled)[0].data[1:] = 0
    pruned = dsonas.prune_model(scaled, x)
    with torch.inference_mode():
        seconds = {
            name: min(Timer("m(x)", globals={"m": m, "x": x}).timeit(3).median for _ in range(5))
            for name, m in (("dense", model), ("pruned", pruned))
        }
    assert seconds["pruned"] < 0.6 * seconds["dense"]


def test_the_penalty_presses_a_useless_branch_to_0():
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    labels = (x @ torch.randn(8)).sign()
    model = dsonas.scale_connections(Residual(), x)
    weights = torch.optim.SGD([p for n, p in model.named_parameters() if "scaling" not in n], 0.05)
    factors = list(model.scaling.parameters())
    press = dsonas.ProximalNAG(factors, lr=0.05, penalty=0.3)
    for _ in range(120):
        model.zero_grad()
        F.soft_margin_loss(model(x)[:, 0], labels).backward()
        weights.step()
        press.step()
        normalise_factors(factors, press)
    live = [link for link in list_connections(model) if link.factor]
    assert 1 <= len(live) < 3
    pruned = dsonas.prune_model(model, x)
    assert num_params(pruned) < num_params(model) - 3
    accuracy = ((pruned(x)[:, 0] * labels) > 0).float().mean()
    assert accuracy > 0.9


def test_normalised_factors_keep_their_ratios_and_lose_only_radial_momentum():
    vector = torch.nn.Parameter(torch.tensor([3.0, 1.0, 0.0]))
    dead = torch.nn.Parameter(torch.zeros(2))
    press = dsonas.ProximalNAG([vector, dead])
    press.state[vector]["momentum_buffer"] = torch.tensor([1.0, 2.0, 5.0])
    normalise_factors([vector, dead], press)
    ratio = vector.detach()[0] / vector.detach()[1]
    assert float(ratio) == pytest.approx(3)  # exactly on some kinds of CPU only
    torch.testing.assert_close(vector.square().mean(), torch.tensor(1.0))
    momentum = press.state[vector]["momentum_buffer"]
    torch.testing.assert_close((momentum * vector).sum(), torch.tensor(0.0))
    torch.testing.assert_close(momentum - torch.tensor([1.0, 2.0, 5.0]),
                               torch.tensor([-1.5, -0.5, 0.0]))  # fmt: skip
    assert dead.tolist() == [0, 0]


def test_a_factor_that_comes_and_goes_does_not_change_the_scale_of_the_others():
    vector = torch.tensor([1.0, 1.0])
    for other in (0.01, 0.0, 0.01):
        vector[1] = other
        normalise_factors([vector])
        assert vector[0].item() == pytest.approx(2**0.5, rel=1e-3)


class Concatenated(nn.Module):
    """A concatenation, and what reads it."""

    def __init__(self, reader: nn.Module) -> None:
        super().__init__()
        self.left, self.right, self.reader = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), reader

    def forward(self, x):
        return self.reader(torch.cat([self.left(x), self.right(x)], 1))


def test_factors_that_batch_normalisation_takes_out_are_warned_of():
    x = torch.randn(4, 3, 6, 6)
    with pytest.warns(UserWarning, match="only batch normalisation reads cat"):
        model = dsonas.scale_connections(Concatenated(nn.BatchNorm2d(8, affine=False)), x)
    (model(x) ** 3).mean().backward()
    assert scaling_factors(model)[0].grad.abs().max() < 1e-4  # as the warning says
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dsonas.scale_connections(Concatenated(nn.Conv2d(8, 2, 1)), x)


class Branching(nn.Module):
    """Code that torch.fx cannot follow."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


class Around(nn.Module):
    """A part that can be traced around one that cannot."""

    def __init__(self):
        super().__init__()
        self.inner = Branching()

    def forward(self, x):
        return x + self.inner(x)


def test_what_cannot_be_traced_is_named_and_can_be_kept_whole():
    x = torch.ones(2, 3)
    with pytest.raises(
        ValueError, match=r"stops in Branching: the code depends on the values.*leaves=\(Bran"
    ):
        dsonas.scale_connections(Around(), x)
    with pytest.raises(ValueError, match=r"stops in the forward of Branching.*module of its own"):
        dsonas.scale_connections(Branching(), x)
    model = dsonas.scale_connections(Around(), x, leaves=(Branching,))
    assert_same(Around(), model, torch.rand(4, 3))


def test_other_models_that_are_refused():
    x = torch.ones(2, 8)
    with pytest.raises(ValueError, match=r"none was found.*ScaledSum"):
        dsonas.scale_connections(nn.Linear(8, 8), x)
    with pytest.raises(ValueError, match=r"same operations in training and in evaluation"):
        dsonas.scale_connections(zoo.googlenet(init_weights=False), torch.ones(2, 3, 64, 64))
    with pytest.raises(ValueError, match=r"example must be an input that the model can run on"):
        dsonas.scale_connections(Residual(), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"must have scaling factors.*scale_connections"):
        dsonas.prune_model(Residual(), x)
    model = dsonas.scale_connections(Residual(), x)
    scaling_factors(model)[0].data.zero_()
    with pytest.raises(ValueError, match=r"cut all: train again.*lower penalty"):
        dsonas.prune_model(model, x)


@pytest.mark.parametrize("in_place", [True, False])
def test_sums_that_overwrite_what_others_read(in_place: bool):
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)

        def forward(self, x):
            y = old = self.a(x)
            if in_place:
                y = y.add_(x)
            else:
                y += x
            return y + old * 2 + x

    net, x = Overwriting(), torch.randn(2, 3)
    model = dsonas.scale_connections(net, x)
    assert [len(factors) for factors in scaling_factors(model)] == [2, 3]
    for factors in ([[1.0, 0.5], [0.0, 1.0, 0.5]], [[0.0, 1.0], [0.3, 0.0, 1.0]]):
        for vector, values in zip(scaling_factors(model), factors, strict=True):
            vector.data = torch.tensor(values)
        assert_same(model, dsonas.prune_model(model, x), torch.randn(5, 3))


def test_scaled_sums_check_their_inputs():
    with pytest.raises(ValueError, match="num_inputs must be at least 1, got 0"):
        ScaledSum(0)
    with pytest.raises(ValueError, match=r"ScaledSum must get 2 inputs.*got 1"):
        ScaledSum(2)(torch.ones(1))
    assert repr(ScaledConcat(2)) == "ScaledConcat(1, 1)"
