"""Trained models brought to a budget: branches and channels."""

import copy
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import nn
from torchvision.models import swin_transformer as swin

import dsonas
from dsonas import Budget, Searcher
from dsonas.cost import GraphCosts, count_model
from dsonas.search import SearchConfig, scale_model
from dsonas.sparse import channels, find_channels, trace

pytest.importorskip("torch_pruning")

TOLERANCE = 2e-6  # of the largest output


class Written(nn.Module):
    """A concatenation, a shared layer, a sum, a gate, and a flattened head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.shared = nn.Conv2d(12, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.left, self.right = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 10, 3, padding=1)
        self.join = nn.Conv2d(18, 12, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(12, 12, 1)
        self.frozen = nn.Linear(12 * 16, 20)
        self.frozen.weight.requires_grad_(False)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.shared(F.relu(self.shared(x))))
        y = self.join(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1))
        x = x + y * self.gate(F.adaptive_avg_pool2d(x, 1)).sigmoid()
        return self.head(F.relu(self.frozen(F.adaptive_avg_pool2d(x, 4).flatten(1))))


class DenseLayers(nn.Module):
    """Dense connections before batch normalisation, as DenseNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=False):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(F.relu(self.norms[3](torch.cat(features, 1))).mean((2, 3)))


class Styled(nn.Module):
    """What treats each channel by itself, and a pixel shuffle, which is misread."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.slopes = nn.Conv2d(3, 32, 3, padding=1), nn.PReLU(32)
        self.a, self.norm = nn.Conv2d(32, 32, 3, padding=1), nn.InstanceNorm2d(32, affine=True)
        self.b, self.slope = nn.Conv2d(32, 32, 3, padding=1), nn.PReLU()
        self.c = nn.Conv2d(32, 16, 3, stride=2, padding=1)
        self.shuffle, self.d = nn.PixelShuffle(2), nn.Conv2d(4, 24, 3, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.norm(self.a(self.slopes(self.stem(x)))).relu()
        x = self.shuffle(self.c(self.slope(self.b(x))))
        return self.head(self.d(x).relu().mean((2, 3)))


def small_vit() -> nn.Module:
    return zoo.VisionTransformer(32, 8, 2, 4, 32, 256, num_classes=5)


MODELS = {
    "written": Written,
    "dense": DenseLayers,
    "styled": Styled,
    "resnet18": lambda: zoo.resnet18(num_classes=5),
    "mobilenet_v2": lambda: zoo.mobilenet_v2(num_classes=5),
    "vgg11_bn": lambda: nn.Sequential(zoo.vgg11_bn().features, nn.Flatten(), nn.Linear(512, 5)),
    "densenet": lambda: zoo.DenseNet(12, (3, 3), 16, num_classes=5),
    "convnext": lambda: zoo.convnext_tiny(num_classes=5),
    "vit": small_vit,
    "googlenet": lambda: zoo.googlenet(num_classes=5, aux_logits=False, init_weights=False),
    "efficientnet": lambda: zoo.efficientnet_b0(num_classes=5),
}


def make(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A model with statistics of a few random batches."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MODELS[name]()
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(8, 3, 32, 32))
    return model.eval(), torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("name", MODELS)
def test_budgets_hold_and_the_result_is_the_masked_supernet(name: str) -> None:
    model, x = make(name)
    before, whole = copy.deepcopy(model.state_dict()), count_model(model, x[:1])
    for budget in (Budget(macs="75%"), Budget(macs="35%"), Budget(params="60%", macs="70%")):
        supernet = scale_model(model, x[:1], budget, SearchConfig())
        with torch.no_grad():
            same = (supernet.model.eval()(x) - model(x)).abs().max()
            assert same <= TOLERANCE * model(x).abs().max()
        result = Searcher(supernet, budget=budget, steps=1).finish()
        counted = count_model(result.model, x[:1])
        for measure, bound in budget.of(whole.__getitem__).bounds.items():
            assert counted[measure] <= bound
        assert result.cost == pytest.approx(counted[budget.leading], rel=1e-9)
        assert (
            result.cost > 0.8 * budget.of(whole.__getitem__).bounds[budget.leading]
            or len(budget.given) > 1
        )
        with torch.no_grad():
            masked, cut = supernet.model.eval()(x), result.model.eval()(x)
        assert (masked - cut).abs().max() <= TOLERANCE * masked.abs().max()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("name", ["written", "dense", "styled", "resnet18", "mobilenet_v2", "vit"])
def test_the_result_trains_on_exports_and_loads(name: str, tmp_path) -> None:
    model, x = make(name)
    result = dsonas.compress(model, x[:1], budget="50%")
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n for n, p in result.model.named_parameters() if not p.requires_grad} == frozen
    optimizer = torch.optim.SGD([p for p in result.model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(result.model.train()(x), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    dsonas.save_model(result.model, tmp_path)
    loaded = dsonas.load_model(tmp_path, MODELS[name]()).eval()
    expected = result.model.eval()(x)
    assert torch.equal(loaded(x), expected)
    exported = torch.export.export(loaded, (x,)).module()
    torch.testing.assert_close(exported(x), expected, rtol=1e-5, atol=1e-5)


def test_onnx(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = make("written")
    result = dsonas.compress(model, x[:1], budget="40%").model.eval()
    torch.onnx.export(result, (x,), tmp_path / "net.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.tensor(found), result(x), rtol=1e-4, atol=1e-5)


def data(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in which the channel of their class, of three, is brighter."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(256, 3, 8, 8, generator=generator)
    labels = torch.randint(3, (256,), generator=generator)
    return images + 0.4 * F.one_hot(labels, 3)[:, :, None, None], labels


class Wide(nn.Module):
    """Most of its channels, and one of its branches, are of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 32, 1), nn.BatchNorm2d(32)
        self.b, self.c = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)))
        return self.head((x + self.b(x) + self.c(x)).mean((2, 3)))


def fit(model: nn.Module, searcher: Searcher, batch: int = 32) -> None:
    optimizer = torch.optim.SGD(searcher.weights(), lr=0.05, momentum=0.9)
    for (x, y), (xf, yf) in zip(
        zip(*(t.split(batch) for t in data(0)), strict=True),
        zip(*(t.split(batch) for t in data(1)), strict=True),
        strict=True,
    ):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        F.cross_entropy(model(xf), yf).backward()
        searcher.step()


def trained() -> nn.Module:
    torch.manual_seed(0)
    model, (x, y) = Wide(), data(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("steps", [None, 8])
def test_a_model_is_trained_while_it_shrinks(steps: int | None) -> None:
    model, counted = trained(), []

    def epoch(net: nn.Module, searcher: Searcher) -> None:
        fit(net, searcher)
        counted.append(searcher.cost())

    x = data(0)[0][:1]
    result = dsonas.compress(model, x, budget="25%", fit=epoch, epochs=12, steps=steps)
    whole = count_model(model, x)["macs"]
    assert len(counted) == 12
    assert sorted(counted, reverse=True) == counted
    assert counted[0] == whole or steps is not None
    assert count_model(result.model, x)["macs"] == result.cost <= 0.25 * whole
    removed = result.removals
    assert removed.by_penalty > removed.by_budget
    images, labels = data(2)
    accuracy = (result.model.eval()(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.9


def test_the_same_seed_gives_the_same_result() -> None:
    found = []
    for _ in range(2):
        result = dsonas.compress(trained(), data(0)[0][:1], budget="30%", fit=fit, epochs=3)
        found.append((result.choices, result.model.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(v, found[1][1][k]) for k, v in found[0][1].items())


@pytest.mark.parametrize("name", ["written", "googlenet", "resnet18", "convnext"])
def test_costs_without_links_are_those_of_the_pruned_model(name: str) -> None:
    model, x = make(name)
    supernet = scale_model(model, x[:1], None, SearchConfig(), channels=False)
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        flags = tuple(
            tuple((torch.rand(len(f), generator=generator) > 0.3).tolist()) for f in supernet.live
        )
        if not supernet.graph_costs.is_live(flags):
            continue
        with torch.no_grad():
            for vector, row in zip(supernet.vectors(), flags, strict=True):
                vector.copy_(torch.tensor(row, dtype=torch.float32))
        supernet.live = flags
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            counted = count_model(supernet.final(), x[:1])
        assert (
            supernet.graph_costs.costs(flags, supernet.graph_costs.groups)["macs"]
            == counted["macs"]
        )


class TestWhatIsRefused:
    def test_a_budget_below_the_floor_before_any_training(self) -> None:
        def never(*_) -> None:
            raise AssertionError

        model, x = make("written")
        with pytest.raises(ValueError, match=r"budget\.macs must be at least \d+.*got 100"):
            dsonas.compress(model, x[:1], budget=100, fit=never)
        timed = dsonas.Budget(macs="50%", latency_ms=1)
        with pytest.raises(ValueError, match=r"budget\.latency_ms is not counted"):
            dsonas.compress(model, x[:1], budget=timed, fit=never)

    def test_without_torch_pruning(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "torch_pruning", None)
        model, x = make("written")
        with pytest.raises(ValueError, match=r'"dsonas\[compress\]"'):
            dsonas.compress(model, x[:1], budget="50%")
        assert dsonas.compress(model, x[:1], budget="80%", channels=False).cost > 0

    def test_a_model_that_torch_pruning_cannot_follow(self) -> None:
        model, x = zoo.shufflenet_v2_x0_5(), torch.randn(1, 3, 64, 64)
        with pytest.raises(ValueError, match=r"torch-pruning can follow.*channels=False"):
            dsonas.compress(model, x, budget="50%")

    def test_a_model_without_anything_to_remove(self) -> None:
        with pytest.raises(ValueError, match="must have something to remove"):
            dsonas.compress(nn.Linear(2, 2), torch.zeros(1, 2), budget="50%")

    def test_a_fit_that_never_steps(self) -> None:
        with pytest.raises(ValueError, match=r"must call searcher\.step\(\)"):
            dsonas.compress(Wide(), data(0)[0][:1], budget="50%", fit=lambda *_: None)

    @pytest.mark.parametrize("steps", [0, -1])
    def test_steps_that_mean_nothing(self, steps: int) -> None:
        with pytest.raises(ValueError, match=f"steps must be at least 1, got {steps}"):
            dsonas.compress(Wide(), data(0)[0][:1], budget="50%", fit=fit, steps=steps)

    def test_one_epoch_of_unknown_steps(self) -> None:
        with pytest.raises(ValueError, match="steps must be given"):
            dsonas.compress(Wide(), data(0)[0][:1], budget="50%", fit=fit, epochs=1)


def test_a_fit_that_steps_less_often_than_its_first_epoch_is_told() -> None:
    sizes = iter((32, 64))
    with pytest.warns(UserWarning, match=r"searcher\.step\(\) 4 times, not 8 as its first epoch"):
        dsonas.compress(
            trained(), data(0)[0][:1], budget="25%", fit=lambda *both: fit(*both, next(sizes))
        )


def test_a_fit_that_ends_the_search_is_refused() -> None:
    def fit_and_finish(model, searcher) -> None:
        fit(model, searcher)
        searcher.finish()

    with pytest.raises(ValueError, match="fit must leave the end of the search to compress"):
        dsonas.compress(Wide(), data(0)[0][:1], budget="50%", fit=fit_and_finish)


def tiny_swin(**blocks) -> nn.Module:
    return swin.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4], num_classes=3, **blocks)


def tiny_swin_v2() -> nn.Module:
    return tiny_swin(block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2)


@pytest.mark.parametrize("make_swin", [tiny_swin, tiny_swin_v2])
def test_what_torch_pruning_cannot_follow_stays(make_swin, monkeypatch) -> None:
    monkeypatch.setattr(channels, "MOST_INDICES", 20_000)  # that of Swin V2 would have no end
    torch.manual_seed(0)
    model, x = make_swin().eval(), torch.randn(2, 3, 16, 16)
    supernet = scale_model(model, x, Budget(macs="60%"), SearchConfig())
    assert list(supernet.channels.sizes) == ["features.3.0.mlp.0", "features.1.0.mlp.0"]
    result = Searcher(supernet, budget=Budget(macs="60%"), steps=1).finish()
    masked = supernet.model.eval()(x).detach()
    assert (masked - result.model.eval()(x)).abs().max() <= TOLERANCE * masked.abs().max()


class Attention(nn.Module):
    """Heads written by hand, and an MLP: two branches of about the same cost."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 40), nn.Linear(40, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return self.head((x + self.down(F.gelu(self.up(x)))).mean(1))


@pytest.mark.parametrize("share", [0.75, 0.4, 0.3])
def test_few_branches_still_use_the_budget_up(share: float) -> None:
    """One branch saves less than what is asked for, both save far more."""
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(2, 5, 16)
    result = dsonas.compress(model, x, budget=f"{100 * share}%")
    whole = count_model(model, x)["macs"]
    assert 0.9 * share * whole < result.cost == count_model(result.model, x)["macs"]
    assert result.cost <= share * whole


def test_a_model_in_bfloat16() -> None:
    model, x = make("written")
    result = dsonas.compress(model.bfloat16(), x[:1].bfloat16(), budget="50%")
    assert {tensor.dtype for tensor in result.model.parameters()} == {torch.bfloat16}
    assert result.model.eval()(x.bfloat16()).isfinite().all()


class Mixed(nn.Module):
    """Channels that are normalised together, swapped, or given out, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.d, self.e, self.f = (nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.f.weight = self.e.weight
        self.g, self.h = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.b(self.norm(self.a(x)))
        x = self.c(x.flip(1))
        y = self.d(x)
        x = self.f(self.e(y).relu())
        return self.h(self.g(x).relu()), y


def test_channels_that_cannot_go_exactly_are_left_alone() -> None:
    x = torch.randn(2, 8)
    found = find_channels(trace(Mixed(), x), x)
    assert sorted(found.sizes) == ["c", "g"]
    costs = GraphCosts(trace(Mixed(), x[:1]), x[:1], found)
    assert costs.costs((), costs.groups)["macs"] == 8 * 64


@pytest.mark.parametrize(
    ("budget", "message"),
    [(0.5, r'a share such as "50%", got 0\.5'),
     (Budget(latency_ms=1), "bound macs or params"), ("half", "positive number"),
     (Budget(), "must bound macs or params"), (None, "must bound macs or params")],
)  # fmt: skip
def test_budgets_that_mean_nothing(budget, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dsonas.compress(Written(), torch.zeros(1, 3, 8, 8), budget=budget)
