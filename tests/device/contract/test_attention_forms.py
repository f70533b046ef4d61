"""Forms of fused, sparse and latent attention that no adapter has, beside torch_npu's own shape functions and ours."""

from __future__ import annotations

import pytest
import torch

import attention_forms
import mla_forms
import sparse_attention_forms
from npudiff.device.contract.shapes import ShapeWatch
from npudiff.device.simulator.library import operators
from npudiff.device.simulator.schemas import namespace, qualified_name

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("torch_npu")]

CALLS = attention_forms.forms() | sparse_attention_forms.forms() | mla_forms.forms()


@pytest.mark.few(60)
@pytest.mark.parametrize("name", CALLS)
def test_shapes_and_dtypes(name):
    operator, positional, keywords = CALLS[name]
    ours = {f"{namespace(one.schema)}::{qualified_name(one.schema)}": one.meta for one in operators()}
    watch = ShapeWatch(ours)
    with watch:
        getattr(torch.ops.npu, operator)(*positional, **keywords)
    assert sum(watch.compared.values()) == 1
    disagreements = [str(one) for one in watch.disagreements]
    if name.startswith("update 0"):
        # op-plugin's host code leaves the log-sum-exp undefined without update type 1; its shape function does not ask.
        assert all("output 1: simulated None" in one for one in disagreements)
        return
    if name.startswith("fusion"):
        # op-plugin's host code counts the numbers that a dropout draws; its shape function says 0.
        (one,) = disagreements
        assert "output 6: simulated " in one
        assert ", wheel 0" in one
        return
    assert disagreements == []
