"""The proximal operator and the optimiser against their definitions."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from dsonas.sparse.proximal import ProximalNAG, soft_threshold

finite = st.floats(-3, 3, allow_nan=False, width=32)


@given(st.lists(finite, min_size=1, max_size=5), st.floats(0, 2))
def test_soft_threshold_minimises_its_objective_on_a_grid(values: list[float], threshold: float):
    v = torch.tensor(values, dtype=torch.float64)
    found = soft_threshold(v, threshold)
    grid = torch.linspace(-4, 4, 801, dtype=torch.float64)

    def objective(x, v):
        return 0.5 * (x - v) ** 2 + threshold * x.abs()

    best = objective(grid[:, None], v).min(0).values
    assert (objective(found, v) <= best + 1e-12).all()
    assert (found[v.abs() <= threshold] == 0).all()


def test_soft_threshold_takes_a_threshold_for_each_element():
    values, thresholds = torch.tensor([1.0, 1.0, -2.0]), torch.tensor([0.25, 2.0, 0.5])
    assert soft_threshold(values, thresholds).tolist() == [0.75, 0.0, -1.5]


@pytest.mark.parametrize("threshold", [-1e-9, float("nan")])
def test_soft_threshold_refuses(threshold: float):
    with pytest.raises(ValueError, match=r"threshold must be >= 0.*"):
        soft_threshold(torch.ones(2), threshold)


def reference(start, gradients, lr, penalty, momentum, clip):
    """The three lines of the method in numpy."""
    factors, buffer = start.copy(), np.zeros_like(start)
    for gradient in gradients:
        g = gradient if clip is None else np.clip(gradient, -clip, clip)
        step = factors - lr * g
        z = np.sign(step) * np.maximum(0, np.abs(step) - lr * penalty)
        buffer = z - factors + momentum * buffer
        factors = np.maximum(0, z + momentum * buffer)
    return factors


def follow(optimizer: ProximalNAG, factor: torch.nn.Parameter, gradients) -> None:
    for gradient in gradients:
        factor.grad = torch.as_tensor(gradient, dtype=factor.dtype)
        optimizer.step()


def case(seed: int, size: int = 6, steps: int = 12):
    rng = np.random.default_rng(seed)
    start = rng.uniform(0, 1.5, size)
    start[0] = 0.0
    return start, rng.normal(0, 2, (steps, size)), rng.uniform(0, 2, size)


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.floats(0.01, 0.5),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.sampled_from([None, 0.5, 2.0]),
    st.booleans(),
)
def test_step_equals_the_plain_reference(seed, lr, momentum, clip, per_element):
    start, gradients, penalties = case(seed)
    penalty = penalties if per_element else float(penalties[0])
    factor = torch.nn.Parameter(torch.tensor(start))
    given_penalty = torch.tensor(penalty) if per_element else penalty
    optimizer = ProximalNAG([factor], lr=lr, penalty=given_penalty, momentum=momentum, clip=clip)
    follow(optimizer, factor, gradients)
    expected = reference(start, gradients, lr, penalty, momentum, clip)
    np.testing.assert_allclose(factor.detach().numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_equals_nesterov_sgd_without_penalty_while_factors_stay_positive(momentum: float):
    rng = np.random.default_rng(3)
    ours = torch.nn.Parameter(torch.full((5,), 50.0, dtype=torch.float64))
    theirs = torch.nn.Parameter(ours.detach().clone())
    first = ProximalNAG([ours], lr=0.1, penalty=0.0, momentum=momentum, clip=None)
    second = torch.optim.SGD([theirs], lr=0.1, momentum=momentum, nesterov=momentum > 0)
    for _ in range(30):
        gradient = torch.tensor(rng.normal(0, 1, 5))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        first.step()
        second.step()
    assert (ours > 0).all()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_momentum_0_is_the_plain_proximal_gradient_step():
    factor = torch.nn.Parameter(torch.tensor([1.0, 0.04, 0.5], dtype=torch.float64))
    optimizer = ProximalNAG([factor], lr=0.1, penalty=0.5, momentum=0.0)
    follow(optimizer, factor, [[1.0, 0.0, -1.0]] * 2)
    expected = [1.0 - 2 * 0.15, 0.0, 0.5 + 2 * 0.05]
    np.testing.assert_allclose(factor.tolist(), expected, atol=1e-15)


def test_clipping_is_elementwise():
    factor = torch.nn.Parameter(torch.full((3,), 5.0, dtype=torch.float64))
    optimizer = ProximalNAG([factor], lr=0.1, penalty=0.0, momentum=0.0, clip=2.0)
    follow(optimizer, factor, [[100.0, -100.0, 1.0]])
    np.testing.assert_allclose(factor.tolist(), [4.8, 5.2, 4.9])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_zero_without_gradient_stays_exactly_zero(momentum: float):
    factor = torch.nn.Parameter(torch.tensor([0.0, 1.0]))
    optimizer = ProximalNAG([factor], lr=0.3, penalty=0.01, momentum=momentum)
    for step in range(20):
        follow(optimizer, factor, [[0.0, (-1.0) ** step]])
        assert factor[0].item() == 0.0
    assert factor[1].item() != 1.0


def test_a_factor_without_gradient_is_pressed_to_exactly_zero():
    factor = torch.nn.Parameter(torch.tensor([0.3]))
    optimizer = ProximalNAG([factor], lr=0.1, penalty=0.05, momentum=0.9)
    follow(optimizer, factor, [[0.0]] * 40)
    assert factor.item() == 0.0


@pytest.mark.parametrize("tensor_penalty", [False, True])
def test_state_dict_round_trip_goes_on_identically(tensor_penalty: bool):
    start, gradients, penalties = case(5, steps=20)
    penalty = torch.tensor(penalties) if tensor_penalty else 0.05
    first = torch.nn.Parameter(torch.tensor(start))
    one = ProximalNAG([first], lr=0.1, penalty=1.0, momentum=0.9)
    one.param_groups[0]["penalty"] = penalty
    follow(one, first, gradients[:10])
    second = torch.nn.Parameter(first.detach().clone())
    two = ProximalNAG([second], lr=0.7, penalty=3.0, momentum=0.1, clip=None)
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    follow(one, first, gradients[10:])
    follow(two, second, gradients[10:])
    assert first.tolist() == second.tolist()
    assert first.tolist() != start.tolist()


def test_groups_have_their_own_penalty():
    factors = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = ProximalNAG([{"params": [f]} for f in factors], lr=0.1, momentum=0.0, penalty=1.0)
    optimizer.param_groups[1]["penalty"] = 4.0
    for factor in factors:
        factor.grad = torch.zeros(1)
    optimizer.step()
    assert [round(f.item(), 6) for f in factors] == [0.9, 0.6]


def test_parameter_without_gradient_is_left_alone():
    factor = torch.nn.Parameter(torch.ones(2))
    ProximalNAG([factor], penalty=1.0).step()
    assert factor.tolist() == [1.0, 1.0]


def test_closure_is_run_with_gradients():
    factor = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = ProximalNAG([factor], lr=0.1, penalty=0.0, momentum=0.0)

    def closure():
        loss = (2 * factor).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert factor.item() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("momentum", float("nan")),
        ("clip", 0.0),
        ("clip", -1.0),
        ("penalty", -1e-3),
        ("penalty", float("nan")),
        ("penalty", torch.tensor([0.1, -0.1])),
    ],
)
def test_values_out_of_range_are_refused_by_name(name: str, value):
    with pytest.raises(ValueError, match=rf"^{name} must be .*got "):
        ProximalNAG([torch.nn.Parameter(torch.ones(2))], **{name: value})
