"""A rank without tokens calls its operators all the same: a reference has an answer of no rows."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from draws import drawn
from npudiff.model.constraints import Constraints
from npudiff.run.discovery import load_components

ROWS = 7


def axis_of_rows(component):
    return next(
        (name for name in ("tokens", "rows") if name in component.axes and component.axes[name].has(ROWS)), None
    )


OF_ROWS = [one for one in load_components(()) if one.ranks is None and axis_of_rows(one) is not None]


@pytest.mark.parametrize("component", OF_ROWS, ids=lambda component: component.name)
def test_no_rows_are_answered(component):
    (case, *_) = drawn(component, Constraints.of({axis_of_rows(component): (ROWS,)}), 3)
    inputs = component.inputs(case)
    of_rows = {
        field.name: value[:0]
        for field in dataclasses.fields(inputs)
        if isinstance(value := getattr(inputs, field.name), torch.Tensor) and value.dim() and len(value) == ROWS
    }
    assert of_rows
    full, none = (component.reference(given) for given in (inputs, dataclasses.replace(inputs, **of_rows)))
    shapes = [(full[name].value.shape, none[name].value.shape) for name in component.outputs]
    assert all(len(few) == len(many) for many, few in shapes)
