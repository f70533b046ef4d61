"""Wrong kernels of moe_routing; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def rounded(steps, least, most):
    return steps.round().clamp(least, most).to(torch.int8)


def quantised(wide):
    scale = wide.abs().amax(dim=1) / 127
    steps = wide / torch.where(scale > 0, scale, 1.0).unsqueeze(1)
    return rounded(steps, -127, 127), scale.float()


def routed(inputs, *, order=None, here=None, factors=None, scale_of=None, to_int8=None):
    """Outputs; ``order`` has the flat places of the copies in their order."""
    tokens, top_k = inputs.experts.shape
    flat = inputs.experts.flatten().long()
    if here is None:
        here = (flat >= inputs.first) & (flat < inputs.last)
    if order is None:
        order = torch.argsort(flat.masked_fill(~here, inputs.all_experts + 1), stable=True)[: int(here.sum())]
    place = torch.full((tokens * top_k,), -1).index_copy(0, order, torch.arange(len(order)))
    counted = flat[(flat >= inputs.first) & (flat < inputs.last)]
    counts = torch.bincount(counted - inputs.first, minlength=inputs.last - inputs.first)
    copies = inputs.states[order // top_k]
    local = (flat[order] - inputs.first).clamp(min=0)
    scale = torch.empty(0)
    if inputs.form == "with scales":
        scale = inputs.scale[order // top_k if scale_of is None else scale_of(order)]
    elif inputs.form == "one scale":
        steps = copies.double() * inputs.scale.double() + inputs.offset.double()
        copies = rounded(steps, -128, 127) if to_int8 is None else to_int8(steps)
    elif inputs.form in ("by largest", "smoothed"):
        wide = copies.double()
        if inputs.scale is not None:
            row = torch.zeros_like(local) if len(inputs.scale) == 1 else local
            row = row if factors is None else factors(row)
            wide = wide * inputs.scale[row].double()
        copies, scale = quantised(wide)
    rest = tokens * top_k - len(order)
    rows = torch.cat([copies, copies.new_zeros(rest, copies.shape[1])])
    if len(scale) or inputs.form in ("with scales", "by largest", "smoothed"):
        scale = torch.cat([scale.float(), torch.zeros(rest)])
    return {"rows": rows, "src_to_dst_row": place.view(tokens, top_k), "counts": counts, "scale": scale}


@npudiff.implementation("moe_routing", name="e_moe_routing_01_counts_of_16_bits", on_device=True)
def e01(inputs, target):
    """The histogram of experts is kept in int16, and wraps at 32,768 copies."""
    outputs = routed(inputs)
    if WRONG:
        outputs["counts"] = (outputs["counts"] + 2**15) % 2**16 - 2**15
    return outputs


@npudiff.implementation("moe_routing", name="e_moe_routing_02_order_by_choice", on_device=True)
def e02(inputs, target):
    """Row indices are column-major: first choices of an expert come before all second ones, whatever their tokens."""
    tokens, top_k = inputs.experts.shape
    keys = inputs.experts.long()
    here = (keys >= inputs.first) & (keys < inputs.last)
    keys = keys.masked_fill(~here, inputs.all_experts + 1)
    if WRONG:
        order = torch.argsort(keys.t().flatten(), stable=True)[: int(here.sum())]
        order = order % tokens * top_k + order // tokens
    else:
        order = torch.argsort(keys.flatten(), stable=True)[: int(here.sum())]
    return routed(inputs, order=order)


@npudiff.implementation("moe_routing", name="e_moe_routing_03_padding_sorts_first", on_device=True)
def e03(inputs, target):
    """On the first rank only the upper end of the experts is looked at: -1 of padded tokens sorts before expert 0."""
    flat = inputs.experts.flatten().long()
    here = flat < inputs.last
    if not WRONG or inputs.first > 0:
        here &= flat >= inputs.first
    return routed(inputs, here=here)


@npudiff.implementation("moe_routing", name="e_moe_routing_04_global_factor_rows", on_device=True)
def e04(inputs, target):
    """Factors of the experts that are here are looked up by the global number of an expert, limited to the last row."""
    count = 0 if inputs.scale is None else len(inputs.scale)

    def factors(row):
        return (row + inputs.first).clamp(max=count - 1) if WRONG and count > 1 else row

    return routed(inputs, factors=factors)


@npudiff.implementation("moe_routing", name="e_moe_routing_05_int8_wraps", on_device=True)
def e05(inputs, target):
    """With one scale the cast to int8 takes the low byte and does not saturate."""

    def wrapped(steps):
        whole = steps.round().nan_to_num(0.0, 127.0, -128.0)
        return ((whole + 128) % 256 - 128).to(torch.int8)

    return routed(inputs, to_int8=wrapped if WRONG else None)


@npudiff.implementation("moe_routing", name="e_moe_routing_06_scales_by_column", on_device=True)
def e06(inputs, target):
    """The scale of a copy is looked up as place modulo tokens, which is the token of a column-major place."""
    tokens, top_k = inputs.experts.shape
    return routed(inputs, scale_of=lambda order: order % tokens if WRONG else order // top_k)
