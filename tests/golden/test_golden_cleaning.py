"""Cleaning and the order of packed scaling factors against the published pruning."""

import json

import numpy as np
import pytest
import torch

from dsonas.graph.architecture import Architecture, Skeleton, doubled_channels
from dsonas.graph.block import BlockGraph
from dsonas.graph.spaces import PAPER_OPERATIONS
from dsonas.nn.scaling import ScalingFactors
from helpers import golden_cases as golden
from helpers.builders import write_zeros

CASES, META = golden.read_cases("prune")
ROWS = [(name, row) for name, case in CASES.items() for row in range(len(case["raw"]))]


def row_names(name: str) -> list[str]:
    return str(CASES[name]["names"]).split("\n")


def complete(name: str) -> BlockGraph:
    return BlockGraph.complete(PAPER_OPERATIONS, CASES[name]["ops_built"].shape[1])


@pytest.mark.parametrize("name", CASES)
def test_packed_order(name: str) -> None:
    graph, layout = complete(name), json.loads(str(CASES[name]["layout"]))
    assert layout[-1][2] == len(graph.connections)
    for key, first, end in layout:
        targets = {connection.target for connection in graph.connections[first:end]}
        sources = [connection.source for connection in graph.connections[first:end]]
        kind, *numbers = key.split("_")
        if kind == "layer":
            level, operation = map(int, numbers)
            assert targets == {len(PAPER_OPERATIONS) * (level - 1) + operation}
            assert sources == list(range(1 + len(PAPER_OPERATIONS) * (level - 1)))
        else:
            assert targets == {graph.output_node}
            assert {graph.level(source) for source in sources} == {int(numbers[0])}


@pytest.mark.parametrize(
    ("name", "row"), ROWS, ids=[f"{name}-{row_names(name)[row]}" for name, row in ROWS]
)
def test_clean(name: str, row: int) -> None:
    case, graph = CASES[name], complete(name)
    raw, cleaned = case["raw"][row], case["cleaned"][row]
    found = graph.prune((raw > 0).tolist()).clean()
    np.testing.assert_array_equal(found.live, cleaned > 0)
    np.testing.assert_array_equal(np.where(found.live, raw, 0), cleaned)
    assert ((raw > 0) & ~np.array(found.live)).sum() == case["zeroed_by_cleaning"][row]
    built = 1 + np.flatnonzero(case["ops_built"][row])
    np.testing.assert_array_equal(found.kept_nodes, built)
    assert found.clean() == found


@pytest.mark.parametrize("name", CASES)
def test_full_space_cleans_every_block_by_itself_and_writes_zeros(name: str) -> None:
    case, graph = CASES[name], complete(name)
    blocks = tuple(count - 1 for count in META["units"])
    skeleton = Skeleton(blocks=blocks, channels=doubled_channels(8, len(blocks)))
    supernet = Architecture.complete(skeleton, PAPER_OPERATIONS, graph.num_levels)
    for rows, cleaned in zip(case["full_case_rows"], case["full_cleaned"], strict=True):
        factors = ScalingFactors(
            [torch.from_numpy(case["raw"][row].copy()) for row in rows],
            [torch.ones(2) for _ in supernet.reductions],
        )
        architecture = factors.architecture(supernet)
        write_zeros(factors, architecture)
        found = torch.stack(list(factors.blocks)).detach()
        np.testing.assert_array_equal(found, cleaned)
