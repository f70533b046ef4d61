"""Wrong kernels of swa_mask; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
NAME = "swa_mask"


def _mask(inputs, first=None):
    lengths = inputs.kv_lengths.to(torch.int64).reshape(-1, 1, 1)
    key = torch.arange(inputs.capacity)
    if first is None:
        first = torch.zeros_like(lengths) if inputs.window is None else lengths - inputs.window
    return (key < first) | (key >= lengths)


@npudiff.implementation(NAME, name="c_swa_mask_01_unsigned_difference", on_device=True)
def c01(inputs, target):
    """Length minus window is computed without a sign, and is huge where the window is not full yet."""
    if inputs.window is None:
        return {"mask": _mask(inputs)}
    first = inputs.kv_lengths.to(torch.int64).reshape(-1, 1, 1) - inputs.window
    return {"mask": _mask(inputs, first % 2**32 if WRONG else first)}


@npudiff.implementation(NAME, name="c_swa_mask_02_columns_of_whole_repeats", on_device=True)
def c02(inputs, target):
    """Columns are made 256 bytes at a time, one repeat of the vector unit, and those behind the last whole repeat keep the
    zeros of the buffer: visible."""
    mask = _mask(inputs)
    if WRONG:
        mask[..., inputs.capacity // 256 * 256 :] = False
    return {"mask": mask}


@npudiff.implementation(NAME, name="c_swa_mask_03_one_more_token", stateful=True, on_device=True)
def c03():
    """Where there is a mask of this shape and window already, each row moves on by one token, whatever its length."""
    masks = {}

    def call(inputs, target):
        lengths = inputs.kv_lengths.to(torch.int64).flatten()
        key = (len(lengths), inputs.capacity, inputs.window)
        if WRONG and key in masks:
            mask, before = masks[key]
            rows, now = torch.arange(len(lengths)), before + 1
            written = now <= inputs.capacity
            mask[rows[written], 0, now[written] - 1] = False
            if inputs.window is not None:
                left = now - inputs.window - 1
                gone = left >= 0
                mask[rows[gone], 0, left[gone].clamp(max=inputs.capacity - 1)] = True
            masks[key] = (mask, now)
        else:
            masks[key] = (_mask(inputs), lengths)
        return {"mask": masks[key][0].clone()}

    return call
