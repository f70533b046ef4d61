"""Wrong moe_routing kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def here_of(inputs):
    flat = inputs.experts.flatten().long()
    return flat, (flat >= inputs.first) & (flat < inputs.last)


def order_of(inputs, key=None):
    """Numbers of the copies that are here, in order of their rows."""
    flat, here = here_of(inputs)
    numbers = torch.arange(len(flat))[here]
    return numbers[torch.sort((flat if key is None else key)[here], stable=True).indices]


def formed(inputs, order, wrap=False, token_of_scale=None, expert_of_scale=None):
    flat, _ = here_of(inputs)
    tokens = order // inputs.experts.shape[1]
    copies = inputs.states[tokens]
    if inputs.form == "with scales":
        return copies, inputs.scale[tokens if token_of_scale is None else token_of_scale]
    if inputs.form == "one scale":
        half = torch.float16
        steps = (copies.to(half) * inputs.scale.to(half) + inputs.offset.to(half)).float().round()
        whole = steps.nan_to_num(nan=0.0, posinf=1e9, neginf=-1e9)
        whole = whole.to(torch.int32).to(torch.int8) if wrap else whole.clamp(-128, 127).to(torch.int8)
        return (whole if wrap else whole.clamp(-127, 127)), None
    if inputs.form in ("by largest", "smoothed"):
        rows = copies.float()
        if inputs.scale is not None:
            experts = flat[order] - inputs.first
            rows = rows * (inputs.scale if len(inputs.scale) == 1 else inputs.scale[experts if expert_of_scale is None else expert_of_scale])
        scale = rows.abs().amax(dim=1) / 127
        safe = torch.where(scale == 0, 1.0, scale).unsqueeze(1)
        return torch.round(rows / safe).to(torch.int8), scale
    return copies, None


def outputs(inputs, order, counts=None, nowhere=-1, **changes):
    flat, here = here_of(inputs)
    rows, scale = formed(inputs, order, **changes)
    all_rows = rows.new_zeros(len(flat), inputs.states.shape[1])
    all_rows[: len(order)] = rows
    places = torch.full((len(flat),), nowhere, dtype=torch.int64)
    places[order] = torch.arange(len(order))
    if counts is None:
        counts = torch.bincount(flat[here] - inputs.first, minlength=inputs.last - inputs.first)
    result = {"rows": all_rows, "src_to_dst_row": places.view(inputs.experts.shape), "counts": counts}
    if scale is not None:
        result["scale"] = torch.zeros(len(flat), dtype=torch.float32)
        result["scale"][: len(order)] = scale
    return result


@npudiff.implementation("moe_routing", name="b_routing_01_by_choice", on_device=True)
def b01(inputs, target):
    """Copies sorted as the first version numbers them, choice by choice."""
    tokens, top_k = inputs.experts.shape
    if not WRONG:
        return outputs(inputs, order_of(inputs))
    flat, here = here_of(inputs)
    numbers = torch.arange(tokens * top_k).view(tokens, top_k).T.flatten()
    numbers = numbers[here[numbers]]
    return outputs(inputs, numbers[torch.sort(flat[numbers], stable=True).indices])


@npudiff.implementation("moe_routing", name="b_routing_02_counts_of_the_first_rank", on_device=True)
def b02(inputs, target):
    """A histogram of all experts, and the part of it that is here."""
    flat, _ = here_of(inputs)
    counts = torch.bincount(flat, minlength=inputs.all_experts)
    here = inputs.last - inputs.first
    return outputs(inputs, order_of(inputs), counts[:here] if WRONG else counts[inputs.first : inputs.last])


@npudiff.implementation("moe_routing", name="b_routing_03_eight_bit_keys", on_device=True)
def b03(inputs, target):
    """Radix sort in one pass over the key of an expert."""
    flat, _ = here_of(inputs)
    return outputs(inputs, order_of(inputs, flat & 0xFF if WRONG else flat))


@npudiff.implementation("moe_routing", name="b_routing_04_number_in_sixteen_bits", on_device=True)
def b04(inputs, target):
    """The key of a copy: its expert, and below it its number."""
    flat, _ = here_of(inputs)
    key = (flat << (16 if WRONG else 32)) + torch.arange(len(flat))
    return outputs(inputs, order_of(inputs, key))


@npudiff.implementation("moe_routing", name="b_routing_05_scales_not_sorted", on_device=True)
def b05(inputs, target):
    """Scales go along with their tokens."""
    order = order_of(inputs)
    if WRONG:
        top_k = inputs.experts.shape[1]
        return outputs(inputs, order, token_of_scale=torch.arange(len(order)) // top_k)
    return outputs(inputs, order)


@npudiff.implementation("moe_routing", name="b_routing_06_factors_by_global_expert", on_device=True)
def b06(inputs, target):
    """Factors of the expert of each copy."""
    order = order_of(inputs)
    if WRONG and inputs.form == "smoothed" and len(inputs.scale) > 1:
        flat, _ = here_of(inputs)
        return outputs(inputs, order, expert_of_scale=flat[order].clamp(max=len(inputs.scale) - 1))
    return outputs(inputs, order)


@npudiff.implementation("moe_routing", name="b_routing_07_int8_wraps", on_device=True)
def b07(inputs, target):
    """The cast to int8 with a static scale."""
    return outputs(inputs, order_of(inputs), wrap=WRONG)


@npudiff.implementation("moe_routing", name="b_routing_08_elsewhere_is_row_0", on_device=True)
def b08(inputs, target):
    """Places are cleared, and those of copies that are here written."""
    return outputs(inputs, order_of(inputs), nowhere=0 if WRONG else -1)


@npudiff.implementation("moe_routing", name="b_routing_09_counts_in_blocks_of_32", on_device=True)
def b09(inputs, target):
    """Experts are counted by blocks of 32; the last one begins earlier, so that it is whole."""
    flat, here = here_of(inputs)
    local = flat[here] - inputs.first
    experts = inputs.last - inputs.first
    counts = torch.bincount(local, minlength=experts)
    if WRONG and experts > 32 and experts % 32:
        start = experts - 32
        counts[start:] = torch.bincount(local, minlength=experts)[start:]
        counts[start : experts // 32 * 32] *= 2  # counted by two blocks
    return outputs(inputs, order_of(inputs), counts)


@npudiff.implementation("moe_routing", name="b_routing_10_rows_of_the_tokens", on_device=True)
def b10(inputs, target):
    """Copies are made in rounds of as many rows as there are tokens, while there are any."""
    order = order_of(inputs)
    result = outputs(inputs, order)
    if WRONG and inputs.first > 0:
        # ranks but the first stop where a balanced share would end
        share = -(-inputs.experts.numel() * (inputs.last - inputs.first) * 2 // inputs.all_experts)
        result["rows"][share:] = 0
    return result


@npudiff.implementation("moe_routing", name="b_routing_11_one_scale_half_up", on_device=True)
def b11(inputs, target):
    """Offset as an integer, after the product was rounded."""
    order = order_of(inputs)
    result = outputs(inputs, order)
    if WRONG and inputs.form == "one scale":
        copies = inputs.states[order // inputs.experts.shape[1]]
        steps = (copies.half() * inputs.scale.half()).float().clamp(-127, 127).round()
        steps = (steps + inputs.offset.round()).clamp(-127, 127).nan_to_num(nan=0.0)
        result["rows"][: len(order)] = steps.to(torch.int8)
    return result
