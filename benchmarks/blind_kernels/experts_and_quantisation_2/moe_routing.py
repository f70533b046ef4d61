"""Wrong kernels of moe_routing; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def _here(inputs):
    flat = inputs.experts.flatten().long()
    return flat, (flat >= inputs.first) & (flat < inputs.last)


def _order(inputs):
    """Numbers of the copies that are here, by expert and then by token."""
    flat, here = _here(inputs)
    key = flat.masked_fill(~here, inputs.all_experts)
    return torch.argsort(key, stable=True)[: int(here.sum())]


def _counts(inputs):
    flat, here = _here(inputs)
    return torch.bincount(flat[here] - inputs.first, minlength=inputs.last - inputs.first)


def _places(inputs, order):
    places = torch.full((inputs.experts.numel(),), -1, dtype=torch.int64, device=inputs.experts.device)
    places[order] = torch.arange(len(order), device=order.device)
    return places


def _by_largest(states):
    """int8 and scales of float64 rows."""
    scale = states.abs().amax(dim=1) / 127
    steps = states / torch.where(scale == 0, 1.0, scale).unsqueeze(1)
    return steps.round().clamp(-127, 127).to(torch.int8), scale.float()


def _formed(inputs, order, factor_of=None):
    """Rows of the copies in an order, and their scales if they have any."""
    top_k = inputs.experts.shape[1]
    states = inputs.states[order // top_k]
    if inputs.form == "with scales":
        return states, inputs.scale[order // top_k]
    if inputs.form == "one scale":
        half = torch.float16
        numbers = (states.to(half) * inputs.scale.to(half)).to(half) + inputs.offset.to(half)
        return numbers.double().round().clamp(-127, 127).to(torch.int8), None
    if inputs.form in ("by largest", "smoothed"):
        wide = states.double()
        if inputs.scale is not None:
            local = inputs.experts.flatten().long()[order] - inputs.first
            local = local if factor_of is None else factor_of(local)
            wide = wide * (inputs.scale if len(inputs.scale) == 1 else inputs.scale[local]).double()
        return _by_largest(wide)
    return states, None


def _filled(inputs, rows, scale, places, counts):
    """Outputs of the component from those rows that there are."""
    copies = inputs.experts.numel()
    whole = rows.new_zeros(copies, rows.shape[1])
    whole[: len(rows)] = rows
    outputs = {"rows": whole, "src_to_dst_row": places.view(inputs.experts.shape), "counts": counts}
    if scale is not None:
        all_scales = scale.new_zeros(copies)
        all_scales[: len(scale)] = scale
        outputs["scale"] = all_scales
    return outputs


@npudiff.implementation("moe_routing", name="d_moe_routing_01_descending_sort", on_device=True)
def d01(inputs, target):
    """The sort is a descending one, read from its end: copies of one expert come in the reverse order of tokens."""
    flat, here = _here(inputs)
    if WRONG:
        numbers = torch.arange(len(flat), device=flat.device)[here]
        order = numbers[torch.sort(flat[here], descending=True, stable=True).indices].flip(0)
    else:
        order = _order(inputs)
    rows, scale = _formed(inputs, order)
    return _filled(inputs, rows, scale, _places(inputs, order), _counts(inputs))


@npudiff.implementation("moe_routing", name="d_moe_routing_02_whole_blocks_of_a_row", on_device=True)
def d02(inputs, target):
    """Rows are moved by whole blocks of 32 bytes: what is left of the width behind the last one stays as it was."""
    order = _order(inputs)
    rows, scale = _formed(inputs, order)
    if WRONG:
        block = 32 // inputs.states.element_size()
        rows = rows.clone()
        rows[:, rows.shape[1] // block * block :] = 0
    return _filled(inputs, rows, scale, _places(inputs, order), _counts(inputs))


@npudiff.implementation("moe_routing", name="d_moe_routing_03_factors_of_global_experts", on_device=True)
def d03(inputs, target):
    """Factors are taken by the expert's number in the model, and not among those that are here."""
    order = _order(inputs)
    last = inputs.last - inputs.first - 1
    taken = (lambda local: (local + inputs.first).clamp(max=last)) if WRONG else None
    rows, scale = _formed(inputs, order, taken)
    return _filled(inputs, rows, scale, _places(inputs, order), _counts(inputs))


@npudiff.implementation("moe_routing", name="d_moe_routing_04_minus_one_sorts_first", on_device=True)
def d04(inputs, target):
    """Only numbers behind the last expert are moved to the end: copies of padded tokens of -1 stand before all others."""
    order = _order(inputs)
    rows, scale = _formed(inputs, order)
    places = _places(inputs, order)
    if WRONG:
        front = int((inputs.experts < 0).sum())
        places = torch.where(places >= 0, places + front, places)
        rows = torch.cat([rows.new_zeros(front, rows.shape[1]), rows])
        scale = None if scale is None else torch.cat([scale.new_zeros(front), scale])
    return _filled(inputs, rows, scale, places, _counts(inputs))


@npudiff.implementation("moe_routing", name="d_moe_routing_05_places_are_kept", on_device=True, stateful=True)
def d05():
    """The buffer of places is filled with -1 when it is made; later calls write those of copies that are here alone."""
    buffers = {}

    def routing(inputs, target):
        order = _order(inputs)
        rows, scale = _formed(inputs, order)
        copies = inputs.experts.numel()
        if copies not in buffers or not WRONG:
            buffers[copies] = torch.full((copies,), -1, dtype=torch.int64, device=inputs.experts.device)
        places = buffers[copies]
        places[order] = torch.arange(len(order), device=order.device)
        return _filled(inputs, rows, scale, places, _counts(inputs))

    return routing


@npudiff.implementation("moe_routing", name="d_moe_routing_06_one_scale_wraps", on_device=True)
def d06(inputs, target):
    """With one scale for all, a number that int8 cannot hold is cut to its lowest eight bits, and not limited."""
    order = _order(inputs)
    rows, scale = _formed(inputs, order)
    if WRONG and inputs.form == "one scale":
        half = torch.float16
        states = inputs.states[order // inputs.experts.shape[1]].to(half)
        numbers = (states * inputs.scale.to(half)).to(half) + inputs.offset.to(half)
        whole = numbers.double().nan_to_num(0.0, 65504.0, -65504.0).round().to(torch.int64)
        rows = ((whole + 128) % 256 - 128).to(torch.int8)
    return _filled(inputs, rows, scale, _places(inputs, order), _counts(inputs))
