"""What a rank loads, against which columns and which part of the inner axis it should hold."""

from __future__ import annotations

import pytest
import torch

from draws import default_cases
from npudiff.device.ascend.shard_loading import columns_of, inner_cut, inner_of
from npudiff.properties.tensor_parallel import component
from npudiff.reference.sharded_linear import LinearCheckpoint, own_columns, own_inner


def layers(divided):
    """Layers of drawn cases, with the number of ranks."""
    for case in default_cases(component, 120):
        given = component.inputs(case)
        by_inner = case.layer in ("row", "row_norm_column")
        layer = given.first if by_inner == (divided == "inner") else given.second
        if layer is not None:
            yield layer, case.ranks


def test_loaded_columns_are_those_of_the_rank():
    for layer, ranks in layers("columns"):
        for rank in range(ranks):
            loaded, own = columns_of(layer, rank, ranks), own_columns(layer, rank, ranks)
            for name in ("weight", "bias", "scale", "quant_bias", "deq_scale", "scale_bias"):
                whole = getattr(layer, name)
                assert whole is None or torch.equal(getattr(loaded, name), whole[own]), (name, rank)


def test_loaded_parts_of_the_inner_axis_are_those_of_the_rank():
    for layer, ranks in layers("inner"):
        for rank in range(ranks):
            loaded, own = inner_of(layer, rank, ranks), own_inner(layer, rank, ranks)
            assert torch.equal(loaded.weight, layer.weight[:, own])
            assert loaded.bias is layer.bias
            if layer.group_size:
                groups = range(own.start // layer.group_size, -(-own.stop // layer.group_size))
                assert torch.equal(loaded.scale, layer.scale[:, groups.start : groups.stop])


def test_parts_of_scale_bias_are_shared_out():
    chunks = torch.arange(16.0).view(1, 16)
    layer = LinearCheckpoint(torch.zeros(1, 32), (1,), (1,), "w4a8", scale=torch.ones(1, 1), scale_bias=chunks)
    assert [inner_of(layer, rank, 4).scale_bias.tolist()[0] for rank in (0, 3)] == [[0, 1, 2, 3], [12, 13, 14, 15]]


@pytest.mark.parametrize(("inner", "ranks", "cuts"), [
    (128, 2, [(0, 64), (64, 64)]), (136, 2, [(0, 96), (96, 40)]), (72, 1, [(0, 72)]),
])  # fmt: skip
def test_groups_stay_whole(inner, ranks, cuts):
    layer = LinearCheckpoint(torch.zeros(1, inner), (1,), (1,), group_size=32)
    assert [inner_cut(layer, rank, ranks) for rank in range(ranks)] == cuts
