import pytest
import torch
from hypothesis import given, settings, strategies as st

from dsonas.data import DataError
from dsonas.data.splitting import class_quotas, stratified_choice

counts_and_share = st.tuples(
    st.lists(st.integers(0, 40), min_size=1, max_size=8), st.floats(0, 1)
).map(lambda pair: (torch.tensor(pair[0]), round(pair[1] * sum(pair[0]))))


@given(counts_and_share)
def test_quotas_add_up_and_are_in_proportion(case):
    counts, total = case
    quotas = class_quotas(counts, total)
    assert int(quotas.sum()) == total
    assert bool((quotas >= 0).all())
    assert bool((quotas <= counts).all())
    if total >= int((counts > 0).sum()):
        assert bool((quotas[counts > 0] >= 1).all())
    exact = counts * total / max(1, int(counts.sum()))
    starved = int(((exact > 0) & (exact < 1)).sum())
    assert bool(((quotas - exact).abs() < 1 + starved).all())


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 10), st.floats(0, 1))
def test_choice_is_stratified_and_deterministic(labels, seed, share):
    labels = torch.tensor(labels)
    total = round(share * len(labels))
    chosen = stratified_choice(labels, total, seed)
    assert torch.equal(chosen, stratified_choice(labels, total, seed))
    quotas = class_quotas(torch.bincount(labels), total)
    assert torch.equal(torch.bincount(labels[chosen], minlength=len(quotas)), quotas)


def test_even_classes_split_evenly_like_cifar():
    labels = torch.arange(50_000) % 10
    chosen = stratified_choice(labels, 25_000, seed=1)
    assert torch.bincount(labels[chosen]).tolist() == [2500] * 10


def test_seeds_choose_differently():
    labels = torch.arange(100) % 5
    choices = [stratified_choice(labels, 50, seed) for seed in range(5)]
    assert not any(torch.equal(choices[0], other) for other in choices[1:])


def test_split_parts_are_disjoint_and_complete(make_images):
    images = make_images(count=40)
    first, second = images.split(0.25, seed=3)
    assert (len(first), len(second)) == (30, 10)
    everything = torch.cat([part.gather(torch.arange(len(part))) for part in (first, second)])
    pixels = images.gather(torch.arange(40))
    assert {image.numpy().tobytes() for image in everything} == {
        image.numpy().tobytes() for image in pixels
    }


def test_split_twice_is_the_same(make_images):
    images = make_images(count=40)
    for one, other in zip(images.split(0.5, seed=3), images.split(0.5, seed=3), strict=True):
        assert torch.equal(one.gather(torch.arange(20)), other.gather(torch.arange(20)))
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_split_refuses_fractions_out_of_range(make_images, fraction):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        make_images().split(fraction, seed=0)


def test_split_refuses_an_empty_part(make_images):
    with pytest.raises(DataError, match="one part empty"):
        make_images(count=4).split(0.01, seed=0)


def test_sample_is_stratified_and_never_larger_than_the_set(make_images):
    images = make_images(count=40)
    assert torch.bincount(images.sample(8, seed=0).labels).tolist() == [2, 2, 2, 2]
    assert images.sample(41, seed=0) is images
    assert images.sample(None, seed=0) is images
