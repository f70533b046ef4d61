"""Attention over chosen tokens, which no adapter has, beside torch_npu's own shape functions and the simulator's."""

from __future__ import annotations

import pytest
import torch

from npudiff.device.contract.shapes import ShapeWatch
from npudiff.device.simulator.library import operators
from npudiff.device.simulator.schemas import namespace, qualified_name
from sparse_attention_forms import forms

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("torch_npu")]

CALLS = forms()


@pytest.mark.parametrize("name", CALLS)
def test_shapes_and_dtypes(name):
    operator, positional, keywords = CALLS[name]
    ours = {f"{namespace(one.schema)}::{qualified_name(one.schema)}": one.meta for one in operators()}
    watch = ShapeWatch(ours)
    with watch:
        getattr(torch.ops.npu, operator)(*positional, **keywords)
    assert sum(watch.compared.values()) == 1
    assert [str(one) for one in watch.disagreements] == []
