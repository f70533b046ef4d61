"""Wrong kernels of swa_mask; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def lengths_of(inputs):
    return inputs.kv_lengths.reshape(-1).long()


def hidden(lengths, keys, window):
    """[batch, keys] of int64 lengths and key indices."""
    lengths = lengths[:, None]
    mask = keys[None, :] >= lengths
    if window is not None:
        mask |= keys[None, :] < lengths - window
    return mask


@npudiff.implementation("swa_mask", name="b_swa_mask_01_half_positions", on_device=True)
def b01(inputs, target):
    """Key indices are float16, as the vector unit compares floats."""
    dtype = torch.float16 if WRONG else torch.int64
    keys = torch.arange(inputs.capacity).to(dtype)
    lengths = lengths_of(inputs)[:, None].to(dtype)
    mask = keys[None, :] >= lengths
    if inputs.window is not None:
        mask |= keys[None, :] < (lengths - inputs.window)
    return {"mask": mask.unsqueeze(1)}


@npudiff.implementation("swa_mask", name="b_swa_mask_02_columns_tail", on_device=True)
def b02(inputs, target):
    """Blocks of 128 columns; the tail is left as the buffer was filled."""
    block, capacity = 128, inputs.capacity
    mask = torch.ones(len(inputs.kv_lengths), capacity, dtype=torch.bool)
    blocks = max(1, capacity // block) if WRONG else -(-capacity // block)
    for first in range(0, blocks * block, block):
        keys = torch.arange(first, min(first + block, capacity))
        mask[:, first : first + block] = hidden(lengths_of(inputs), keys, inputs.window)
    return {"mask": mask.unsqueeze(1)}


@npudiff.implementation("swa_mask", name="b_swa_mask_03_replay_opens_only", stateful=True)
def b03():
    """A buffer that lives between replays: each opens its own window, and does not close that of the last one."""
    buffers = {}

    def run(inputs, target):
        lengths = lengths_of(inputs)
        shape = (len(lengths), inputs.capacity)
        buffer = buffers.setdefault(shape, torch.ones(shape, dtype=torch.bool))
        if not WRONG:
            buffer.fill_(True)
        for row, length in zip(buffer, lengths.tolist()):
            first = 0 if inputs.window is None else max(0, length - inputs.window)
            row[first:length] = False
        return {"mask": buffer.clone().unsqueeze(1)}

    return run


@npudiff.implementation("swa_mask", name="b_swa_mask_04_unsigned_start", on_device=True)
def b04(inputs, target):
    """The first visible key is an unsigned difference: huge where the request is shorter than the window."""
    lengths, keys = lengths_of(inputs), torch.arange(inputs.capacity)
    mask = keys[None, :] >= lengths[:, None]
    if inputs.window is not None:
        first = lengths - inputs.window
        first = first % 2**32 if WRONG else first.clamp(min=0)
        mask |= keys[None, :] < first[:, None]
    return {"mask": mask.unsqueeze(1)}


@npudiff.implementation("swa_mask", name="b_swa_mask_05_dummy_sees_a_key", on_device=True)
def b05(inputs, target):
    """Lengths are at least 1, so that a softmax over a dummy request has something to sum."""
    lengths = lengths_of(inputs)
    if WRONG:
        lengths = lengths.clamp(min=1)
    return {"mask": hidden(lengths, torch.arange(inputs.capacity), inputs.window).unsqueeze(1)}


@npudiff.implementation("swa_mask", name="b_swa_mask_06_window_covers_all", on_device=True)
def b06(inputs, target):
    """No mask where the window is at least as long as every request."""
    lengths = lengths_of(inputs)
    longest = int(lengths.max()) if len(lengths) else 0
    if WRONG and inputs.window is not None and inputs.window >= longest:
        return {"mask": torch.zeros(len(lengths), 1, inputs.capacity, dtype=torch.bool)}
    return {"mask": hidden(lengths, torch.arange(inputs.capacity), inputs.window).unsqueeze(1)}


@npudiff.implementation("swa_mask", name="b_swa_mask_07_cores_take_equal_rows", on_device=True)
def b07(inputs, target):
    """Requests are divided among 8 cores; what remains is nobody's where there are more requests than cores."""
    lengths, cores = lengths_of(inputs), 8
    each = len(lengths) // cores if WRONG and len(lengths) > cores else -(-len(lengths) // cores)
    mask = torch.ones(len(lengths), inputs.capacity, dtype=torch.bool)
    for core in range(cores):
        rows = slice(core * each, min((core + 1) * each, len(lengths)))
        mask[rows] = hidden(lengths[rows], torch.arange(inputs.capacity), inputs.window)
    return {"mask": mask.unsqueeze(1)}


@npudiff.implementation("swa_mask", name="b_swa_mask_08_int64_read_as_int32", on_device=True)
def b08(inputs, target):
    """Lengths of 64 bits are read as if they had 32."""
    lengths = inputs.kv_lengths.reshape(-1)
    if WRONG and lengths.dtype == torch.int64:
        lengths = lengths.contiguous().view(torch.int32)[: len(lengths)]
    return {"mask": hidden(lengths.long(), torch.arange(inputs.capacity), inputs.window).unsqueeze(1)}
