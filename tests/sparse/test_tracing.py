"""Code of many kinds: traced, scaled, pruned, and nothing of the user's model lost or changed."""

import copy
import io
import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

import dsonas
from dsonas.sparse.any_model import list_connections
from dsonas.sparse.connections import scaling_factors
from dsonas.sparse.observing import leaves_of
from dsonas.sparse.tracing import trace

WIDTH = 8


class Written(nn.Module):
    """A model whose forward is a function of itself and its input."""

    def __init__(self, forward, **parts) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, torch.Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.written = (forward,)

    def forward(self, x):
        return self.written[0](self, x)


def linear() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


def conv() -> nn.Module:
    return nn.Conv2d(WIDTH, WIDTH, 1)


def assert_equal(a, b, **tolerance) -> None:
    torch.testing.assert_close(a, b, **({"rtol": 1e-5, "atol": 1e-5} | tolerance))


def check(net: nn.Module, x, other) -> tuple[nn.Module, nn.Module]:
    """Scale and prune a model; it is left alone, and what should be equal is."""
    net.eval()
    before = copy.deepcopy(net.state_dict())
    scaled = dsonas.scale_connections(net, x)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [k for k in scaled.state_dict() if "scaling" not in k] == list(before)
    assert list(dsonas.prune_model(scaled, x).state_dict()) == list(before)
    assert_equal(scaled(other), net(other))
    generator = torch.Generator().manual_seed(0)
    for factors in scaling_factors(scaled):
        factors.data = torch.rand(len(factors), generator=generator) + 0.5
    for _ in range(2):
        pruned = dsonas.prune_model(scaled, x).eval()
        assert_equal(pruned(other), scaled(other))
        scaling_factors(scaled)[-1].data[0] = 0
    return scaled, pruned


def chunks(m, x):
    a, b = list(x.chunk(2, 1))
    return torch.cat([a + m.small(b), b], 1) + m.a(x)


def pairs(m, x):
    return m.a(x) + torch.cat(
        [m.small(y) * i for i, y in zip((1, 2), x.split(4, 1), strict=True)], 1
    )


def zeros(m, x):
    state = torch.zeros(x.shape[0], WIDTH)
    for _ in range(2):
        state = state + m.a(x) + m.b(state)
    return state


def asserting(m, x):
    assert x.shape[1] == WIDTH
    y = m.a(x)
    if y.shape != x.shape or not isinstance(y, torch.Tensor) or y.dtype != x.dtype:
        raise ValueError(y.shape)
    return x + y * sum(i for i in range(x.shape[-1]))


def unit(m, x):
    """As in MiDaS: the activation in place changes what the sum reads."""
    x = m.a(x)
    return m.b(m.act(m.a2(m.act(x)))) + x


def writing(m, x):
    y, z = m.a(x), torch.zeros(x.shape[0], WIDTH)
    y[:, :4] = m.b(x)[:, :4]
    z[:, 2:] = x[:, 2:]
    return y + x + z


def viewing(m, x):
    y = m.a(x)
    y.view(-1).mul_(2)
    return y + x


def adding_to_a_view(m, x):
    y = m.a(x)
    view = y.view(-1)
    view += x.reshape(-1)
    return y + x


def positions(m, x):
    return (x + m.a(x)) * m.scale + m.pos[:, : x.shape[1]]


CASES = {
    "chunks": (chunks, [2, 2, 2]),
    "pairs": (pairs, [2, 2]),
    "zeros": (zeros, [3]),
    "asserting": (asserting, [2]),
    "unit": (unit, [2]),
    "writing": (writing, [3]),
    "viewing": (viewing, [2]),
    "adding to a view": (adding_to_a_view, [2]),  # that one sum is left alone
    "positions": (positions, [2]),
    "hstack": (lambda m, x: m.wide(torch.hstack([m.a(x), x])), [2]),
    "stacked": (lambda m, x: torch.stack([m.a(x), x, m.b(x)]).sum(0), [3]),
    "averaged": (lambda m, x: torch.stack([m.a(x), x], -1).mean(dim=-1), [2]),
    "alpha": (lambda m, x: torch.add(m.a(x), x, alpha=0.5).sub(m.b(x), alpha=2), [3]),
    "named": (lambda m, x: torch.add(input=m.a(x), other=x), [2]),
    "minus": (lambda m, x: x - m.a(x) - m.b(x), [3]),
    "minus a sum": (lambda m, x: x - (m.a(x) - m.b(x)), [3]),
    "powers": (lambda m, x: x + 0.04 * torch.pow(m.a(x), 3.0) + torch.pow(2.0, x), [3]),
    "square": (lambda m, x: x + (y := m.a(x)) * y, [2]),
    "twice": (lambda m, x: (y := m.a(x)) + x - 0.5 * y - y.sub(m.b(x), alpha=0.5), [5]),
    "both signs": (lambda m, x: torch.add(m.b(x), y := m.a(x), alpha=3) - y - x, [4]),
    "infinite": (lambda m, x: (y := x + m.a(x)).masked_fill(y < 0, -math.inf), [2]),
}


@pytest.mark.parametrize("name", CASES)
def test_code_of_many_kinds(name: str):
    forward, counts = CASES[name]
    parts = {key: linear() for key in ("a", "b", "a2")}
    buffers = {"scale": torch.rand(WIDTH), "pos": torch.randn(1, WIDTH + 1)}
    small, wide = nn.Linear(4, 4), nn.Linear(2 * WIDTH, 2)
    act = nn.ReLU(inplace=True)
    net = Written(forward, **parts, **buffers, small=small, wide=wide, act=act)
    scaled, _ = check(net, torch.randn(2, WIDTH), torch.randn(5, WIDTH))
    assert sorted(map(len, scaling_factors(scaled))) == counts


def test_signs_stay_beside_the_factors():
    net = Written(lambda m, x: x - m.a(x), a=linear())
    scaled = dsonas.scale_connections(net, torch.randn(2, WIDTH))
    assert [link.factor for link in list_connections(scaled)] == [1, 1]
    factors = scaling_factors(scaled)[0]
    factors.data = torch.tensor([0.0, 0.5])
    x = torch.randn(3, WIDTH)
    assert_equal(dsonas.prune_model(scaled, x)(x), -0.5 * net.a(x))


def test_doubles_and_halves():
    net, x = Written(lambda m, x: x + m.a(x), a=linear()), torch.randn(2, WIDTH)
    check(net.double(), x.double(), x.double())
    scaled = dsonas.scale_connections(net.bfloat16(), x.bfloat16())
    scaling_factors(scaled)[0].data = torch.tensor([2.0, 0.5])
    pruned = dsonas.prune_model(scaled, x.bfloat16())
    assert pruned(x.bfloat16()).dtype == torch.bfloat16
    assert_equal(pruned(x.bfloat16()), scaled(x.bfloat16()), rtol=0.05, atol=0.05)


def test_buffers_stay_buffers():
    net = Written(positions, a=linear(), scale=torch.ones(WIDTH), pos=torch.randn(1, WIDTH))
    x = torch.randn(3, WIDTH)
    scaled, pruned = check(net, x, x)
    scaled.scale.fill_(2.0)  # a schedule of the user's
    assert net.scale.tolist() == [2.0] * WIDTH
    state = pruned.state_dict() | {"scale": torch.zeros(WIDTH)}
    pruned.load_state_dict(state)
    assert_equal(pruned(x), net.pos.expand(3, -1))


def test_code_that_changes_buffers():
    def moving(m, x):
        m.mean = 0.9 * m.mean + 0.1 * x.mean(0)
        m.steps += 1
        m.calls.add_(1)
        return (x + m.a(x)) * m.mean + m.steps

    steps = {key: torch.zeros((), dtype=torch.long) for key in ("steps", "calls")}
    net = Written(moving, a=linear(), mean=torch.zeros(WIDTH), **steps)
    twin, x = copy.deepcopy(net), torch.randn(3, WIDTH)
    scaled = dsonas.scale_connections(net, x)
    assert net.steps == 0
    for _ in range(2):
        assert_equal(scaled(x), twin(x))
    pruned = dsonas.prune_model(scaled, x)
    assert_equal(pruned(x), twin(x))
    assert (pruned.steps, pruned.calls) == (3, 3)
    assert_equal(pruned.mean, twin.mean)


def test_buffers_that_are_not_saved_stay_so():
    class Indexed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = linear()
            self.register_buffer("scale", torch.ones(WIDTH), persistent=False)

        def forward(self, x):
            return x * self.scale + self.a(x)

    _, pruned = check(Indexed(), torch.randn(2, WIDTH), torch.randn(3, WIDTH))
    assert [name for name, _ in pruned.named_buffers()] in ([], ["scale"])


@torch.fx.wrap
def wrapped(x):
    """What torch.fx would keep as one call."""
    return x + 2 * x.relu()


def test_functions_that_torch_fx_would_keep_are_looked_into():
    net = Written(lambda m, x: wrapped(m.a(x)), a=linear())
    scaled, _ = check(net, torch.randn(2, WIDTH), torch.randn(3, WIDTH))
    assert [len(factors) for factors in scaling_factors(scaled)] == [2]


def test_batch_statistics_count_on():
    net = nn.Sequential(conv(), nn.BatchNorm2d(WIDTH))
    x = torch.randn(2, WIDTH, 5, 5)
    scaled, pruned = check(Written(lambda m, x: x + m.net(x), net=net), x, x)
    scaled.train()(x), scaled(x), pruned.train()(x)
    assert net[1].num_batches_tracked == 2
    assert pruned.net.get_submodule("1").num_batches_tracked == 1


def gated(m, x):
    return m.a(x) * torch.sigmoid(m.b(x) + m.c(x))


def windows(m, x):
    batch, channels, height, width = x.shape
    w = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    w = gated(m, w.reshape(-1, channels, 2, 2))
    w = w.view(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return w.reshape(batch, channels, height, width)


@pytest.mark.parametrize(
    ("forward", "layer", "example", "others"),
    [
        (gated, linear, (7, 2, WIDTH), [(7, 5, WIDTH), (3, 1, WIDTH)]),  # sequence first
        (windows, conv, (2, WIDTH, 6, 6), [(5, WIDTH, 6, 6), (3, WIDTH, 8, 4)]),
        (gated, conv, (2, WIDTH, 6, 6), [(1, WIDTH, 9, 3)]),
    ],
)
def test_what_a_dead_sum_leaves_has_any_size(forward, layer, example, others):
    net = Written(forward, a=layer(), b=layer(), c=layer())
    scaled = dsonas.scale_connections(net, torch.randn(example))
    scaling_factors(scaled)[0].data.zero_()
    pruned = dsonas.prune_model(scaled, torch.randn(example))
    assert sum(p.numel() for p in pruned.parameters()) == sum(p.numel() for p in net.a.parameters())
    for size in others:
        x = torch.randn(size)
        assert_equal(pruned(x), scaled(x))


@pytest.mark.parametrize("make", [torch.randn_like, lambda x: torch.randn(x.shape)])
def test_random_outputs(make):
    net, x = Written(lambda m, x: x + m.a(x) + make(x), a=linear()), torch.randn(2, WIDTH)
    pruned = dsonas.prune_model(dsonas.scale_connections(net, x), x)
    assert not torch.equal(pruned(x), pruned(x))
    assert pruned(torch.randn(5, WIDTH)).shape == (5, WIDTH)


def test_parts_without_gradients_stay_without():
    def frozen(m, x):
        with torch.no_grad():
            y = m.a(x).relu()
        return y + m.b(x) + m.a2(x).detach()

    net, x = Written(frozen, a=linear(), b=linear(), a2=linear()), torch.randn(2, WIDTH)
    scaled, pruned = check(net, x, x)
    for model in (scaled, pruned):
        model(x).sum().backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} <= {
            "b.weight", "b.bias", "scaling.add_1.factors"
        }  # fmt: skip


def test_mixed_precision_inside_of_the_code_is_refused():
    def mixed(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.a(x)
        return x + y.float()

    net, x = Written(mixed, a=linear()), torch.randn(2, WIDTH)
    with pytest.raises(ValueError, match=r"the code uses torch.autocast; move that code"):
        dsonas.scale_connections(net, x)
    plain = Written(lambda m, x: x + m.a(x), a=linear())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace(plain, x)  # that of the user's loop is another matter


class DropPath(nn.Module):
    """As in timm."""

    def __init__(self, p: float, mode: str = "row") -> None:
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.p == 0 or not self.training:
            return x
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)


class Attention(nn.Module):
    """The rate is a number that depends on the mode, not a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.p = linear(), 0.5

    def forward(self, x):
        y = self.layer(x)[:, None]
        p = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(y, y, y, dropout_p=p)[:, 0]


@pytest.mark.parametrize("drop", [DropPath(0.5), StochasticDepth(0.5, "row"), Attention()])
def test_parts_that_act_by_the_mode_are_kept(drop):
    net, x = Written(lambda m, x: x + m.drop(m.a(x)), a=linear(), drop=drop), torch.randn(64, WIDTH)
    _, pruned = check(net, x, x)
    file = io.BytesIO()
    torch.save(pruned, file)
    file.seek(0)
    for model in (pruned, copy.deepcopy(pruned), torch.load(file, weights_only=False)):
        model.train()
        assert not torch.equal(model(x), model(x))
        model.drop.p = 0.0  # a schedule
        assert torch.equal(model(x), model(x))


def test_sums_inside_of_transformer_layers_are_seen():
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(2, 5, WIDTH)
    scaled, pruned = check(nn.TransformerEncoder(layer, 2), x, torch.randn(3, 7, WIDTH))
    assert [len(factors) for factors in scaling_factors(scaled)] == [2] * 4
    assert pruned.layers.get_submodule("0") is not None


class Optional(nn.Module):
    """Arguments that are not given, and those that are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x, mask=None, *, y, gain: float = 2.0, flag: bool = True):
        if mask is not None:
            x = x * mask
        return gain * (x + self.layer(y if flag else x))


def test_arguments():
    x = torch.randn(2, WIDTH)
    net = Optional()
    for example in ({"x": x, "y": 2 * x}, (x, {"y": 2 * x}), {"x": x, "mask": x, "y": 2 * x}):
        scaled = dsonas.scale_connections(net, example)
        scaling_factors(scaled)[0].data[1] = 0.5
        pruned = dsonas.prune_model(scaled, example)
        masked = {"mask": x} if "mask" in example else {}
        assert_equal(pruned(x, y=3 * x, **masked), scaled(x, y=3 * x, **masked))
        with pytest.raises(AssertionError, match=r"gain must be 2.0, as when the model was traced"):
            pruned(x, y=x, gain=1.0, **masked)
        if not masked:
            with pytest.raises(AssertionError, match="mask must be None"):
                pruned(x, y=x, mask=x)


def test_a_pruned_model_with_optional_arguments_is_loaded_many_times():
    x = torch.randn(2, WIDTH)
    pruned = dsonas.prune_model(dsonas.scale_connections(Optional(), (x, {"y": x})), (x, {"y": x}))
    for _ in range(3):
        file = io.BytesIO()
        torch.save(pruned, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=False)
        assert_equal(loaded(x, y=x), pruned(x, y=x))
        pruned = loaded


class Gathering(nn.Module):
    """Any keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def forward(self, x, **named):
        return x + self.layer(named["other"])


def test_keyword_arguments_without_names():
    x = torch.randn(2, WIDTH)
    pruned = dsonas.prune_model(
        dsonas.scale_connections(Gathering(), (x, {"other": x})), (x, {"other": x})
    )
    assert pruned(x, other=2 * x).shape == x.shape
    with pytest.raises(ValueError, match=r"example must be an input.*mapping of keyword arguments"):
        dsonas.scale_connections(Gathering(), x)


def test_wrappers_are_taken_off_and_scripts_refused():
    net, x = Written(lambda m, x: x + m.a(x), a=linear()), torch.randn(2, WIDTH)
    for wrapped in (nn.DataParallel(net), torch.compile(net)):
        scaled = dsonas.scale_connections(wrapped, x)
        assert "a.weight" in scaled.state_dict()
        assert_equal(dsonas.prune_model(scaled, x)(x), net(x))
    with pytest.raises(ValueError, match=r"but is a ScriptModule: give the one it was made of"):
        dsonas.scale_connections(torch.jit.trace(linear(), x), x)


class Heads(NamedTuple):
    """Outputs by name."""

    mask: torch.Tensor
    label: torch.Tensor


@dataclass
class Named:
    """The same, as transformers has it."""

    mask: torch.Tensor
    label: torch.Tensor


@pytest.mark.parametrize("kind", [lambda **heads: heads, Heads, Named, lambda **h: [*h.values()]])
def test_a_head_that_becomes_constant_is_said(kind):
    def heads(m, x):
        return kind(mask=m.a(x), label=m.b(m.c(x) + m.a(x)))

    net, x = Written(heads, a=linear(), b=linear(), c=linear()), torch.randn(2, WIDTH)
    scaled = dsonas.scale_connections(net, x)
    scaling_factors(scaled)[0].data.zero_()
    with pytest.warns(UserWarning, match="outputs ('label'|1) no longer depend on the input"):
        pruned = dsonas.prune_model(scaled, x)
    found, wanted = (leaves_of(model(x)) for model in (pruned, scaled))
    assert len(found) == 2
    assert_equal(found, wanted)


def test_checks_of_the_inputs_stay():
    def checked(m, x):
        torch._assert(x.shape[1] == WIDTH, "wrong width")
        torch._assert(m.a(x).shape[1] == WIDTH, "cannot be")
        return x + m.a(x)

    net, x = Written(checked, a=linear()), torch.randn(2, WIDTH)
    scaled = dsonas.scale_connections(net, x)
    scaling_factors(scaled)[0].data[1] = 0
    pruned = dsonas.prune_model(scaled, x)
    assert list(pruned.state_dict()) == []
    with pytest.raises(AssertionError, match="wrong width"):
        pruned(torch.randn(2, WIDTH + 1))


class Rich(Written):
    """With a method and attributes of its own."""

    def predict(self, x):
        return self(x).argmax(1)


def test_losses_are_said_and_plain_attributes_kept():
    net, x = Rich(lambda m, x: x + m.a(x), a=linear()), torch.randn(2, WIDTH)
    net.names, net.sizes = ["cat", "dog"], {"width": 8}
    net.register_forward_hook(lambda *_: None)
    with pytest.warns(
        UserWarning, match=r"hooks of the model; the methods predict of Rich are not"
    ):
        scaled = dsonas.scale_connections(net, x)
    pruned = dsonas.prune_model(scaled, x)
    assert (pruned.names, pruned.sizes) == (["cat", "dog"], {"width": 8})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(Written(lambda m, x: x + m.a(x), a=linear()), x)


def test_channels_last_stays():
    net = Written(
        lambda m, x: m.out(torch.cat([m.a(x), m.b(x)], 1)),
        a=conv(), b=conv(), out=nn.Conv2d(2 * WIDTH, 4, 3, padding=1),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    x = torch.randn(2, WIDTH, 5, 5)
    _, pruned = check(net, x, x)
    assert pruned.out.in_channels == WIDTH
    assert pruned.out.weight.is_contiguous(memory_format=torch.channels_last)
