"""Operators without an adapter: torch_npu's shape functions, and the simulator's, give what the kernels give."""

from __future__ import annotations

import pytest

from npudiff.device.contract.shapes import ShapeWatch, has_meta_function, is_of_torch_npu
from npudiff.device.simulator.library import operators
from npudiff.device.simulator.schemas import namespace, qualified_name
from operator_calls import Tiled, calls

pytestmark = [pytest.mark.contract, pytest.mark.usefixtures("torch_npu")]


@pytest.mark.few(81)
@pytest.mark.parametrize("call", list(calls()), ids=lambda call: call.name)
def test_shapes_are_those_of_the_wheel(call):
    ours = {f"{namespace(one.schema)}::{qualified_name(one.schema)}": one.meta for one in operators()}
    watch = ShapeWatch(ours)
    with watch:
        call.run()
    assert is_of_torch_npu(call.qualified)
    casts = sum(isinstance(one, Tiled) for one in call.arguments)
    assert watch.calls == {call.qualified: 1} | ({"npu::npu_format_cast": casts} if casts else {})
    assert bool(watch.compared) == has_meta_function(call.qualified)
    if call.defect:
        assert watch.disagreements
        assert all(call.defect in str(one) for one in watch.disagreements)
    else:
        assert [str(one) for one in watch.disagreements if one.output not in call.placeholders] == []
