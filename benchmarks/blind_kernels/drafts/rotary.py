"""A kernel of rotary that is wrong in graphs alone; TWIN=1 in the environment runs it without the mistake."""

import os

import torch

import npudiff
from npudiff.device.ascend.rotary import one_row_per_token, rotate

TWIN = bool(os.environ.get("TWIN"))


@npudiff.implementation("rotary", name="g_rotary_01_text_alone", on_device=True, graph=True)
def text_alone(inputs, target):
    """Where all sections have the same positions, as in text, one is taken: a branch of the host; a dummy run's is kept."""
    if inputs.sections:
        alike = not TWIN and bool((inputs.positions == inputs.positions[:1]).all())
        rows = inputs.cos_sin_cache[inputs.positions]
        if alike:
            rows = rows[:1].expand_as(rows)
        inputs = one_row_per_token(inputs, rows)
    return {name: rotate(inputs, getattr(inputs, name), inputs.rotary_dim) for name in ("query", "key")}
