"""Wrong kernels of rotary; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def angles(inputs, positions=None):
    """Cosines and sines of every token, float32 [tokens, rotary_dim / 2]."""
    positions = inputs.positions if positions is None else positions
    half = inputs.cos_sin_cache.shape[1] // 2
    if not inputs.sections:
        rows = inputs.cos_sin_cache[positions].float()
        return rows[:, :half], rows[:, half:]
    cosine, sine, first = [], [], 0
    for kind, count in enumerate(inputs.sections):
        rows = inputs.cos_sin_cache[positions[kind]].float()
        cosine.append(rows[:, first : first + count])
        sine.append(rows[:, half + first : half + first + count])
        first += count
    return torch.cat(cosine, dim=1), torch.cat(sine, dim=1)


def turn(states, cosine, sine, style, dim):
    """Rotate the first dim elements of heads [tokens, heads, head_dim]."""
    part = states[..., :dim].float()
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    first, second = part.chunk(2, dim=-1) if style == "half" else (part[..., 0::2], part[..., 1::2])
    results = (first * cosine - second * sine, second * cosine + first * sine)
    if style == "interleaved":
        whole = torch.stack(results, dim=-1).flatten(-2)
    else:
        whole = torch.cat(results, dim=-1)
    return torch.cat([whole.to(states.dtype), states[..., dim:]], dim=-1)


def both(inputs, cosine, sine, **changes):
    style, dim = changes.get("style", inputs.style), inputs.rotary_dim
    return {name: turn(getattr(inputs, name), cosine, sine, style, dim) for name in ("query", "key")}


@npudiff.implementation("rotary", name="b_rotary_01_pairs_half_a_head_apart", on_device=True)
def b01(inputs, target):
    """Pairs of a partial rotation lie half a head apart, as those of a whole one."""
    cosine, sine = angles(inputs)
    results = both(inputs, cosine, sine)
    head = inputs.query.shape[2]
    if WRONG and inputs.style == "half" and inputs.rotary_dim < head and head % 2 == 0:
        pairs = inputs.rotary_dim // 2
        for name in results:
            states = getattr(inputs, name)
            first, second = states[..., :pairs].float(), states[..., head // 2 : head // 2 + pairs].float()
            turned = states.clone()
            turned[..., :pairs] = (first * cosine[:, None] - second * sine[:, None]).to(states.dtype)
            turned[..., head // 2 : head // 2 + pairs] = (second * cosine[:, None] + first * sine[:, None]).to(states.dtype)
            results[name] = turned
    return results


@npudiff.implementation("rotary", name="b_rotary_02_width_of_a_power_of_two", on_device=True)
def b02(inputs, target):
    """A tile of neighbours is as wide as the next power of two, and is stored without a mask."""
    cosine, sine = angles(inputs)
    results = both(inputs, cosine, sine)
    dim, head = inputs.rotary_dim, inputs.query.shape[2]
    wide = min(1 << (dim - 1).bit_length(), head // 2 * 2)
    if WRONG and inputs.style == "interleaved" and wide > dim:
        more = (wide - dim) // 2
        over = torch.cat([sine, cosine], dim=1)[:, :more]  # behind the cosines of a row lie its sines
        under = torch.cat([cosine.roll(-1, 0), sine], dim=1)[:, :more]
        for name in results:
            part = getattr(inputs, name)[..., dim:wide].float()
            first, second = part[..., 0::2], part[..., 1::2]
            turned = torch.stack([first * over[:, None] - second * under[:, None], second * over[:, None] + first * under[:, None]], dim=-1)
            results[name][..., dim:wide] = turned.flatten(-2).to(results[name].dtype)
    return results


@npudiff.implementation("rotary", name="b_rotary_03_first_position_of_each_token", on_device=True)
def b03(inputs, target):
    """A fused kernel loads one position per token, also where there are several."""
    positions = inputs.positions
    if WRONG and inputs.sections:
        positions = positions[:1].expand_as(positions)
    return both(inputs, *angles(inputs, positions))


@npudiff.implementation("rotary", name="b_rotary_04_tail_of_a_token_block", on_device=True)
def b04(inputs, target):
    """Blocks of 16 tokens; cosines and sines of a last, partial block are those of the 16 last tokens' begin."""
    cosine, sine = angles(inputs)
    count = len(cosine)
    if WRONG and count > 16 and count % 16:
        index = torch.arange(count)
        tail = count // 16 * 16
        index[tail:] = count - 16 + torch.arange(count - tail)
        cosine, sine = cosine[index], sine[index]
    return both(inputs, cosine, sine)


@npudiff.implementation("rotary", name="b_rotary_05_keys_one_after_the_other", on_device=True)
def b05(inputs, target):
    """Queries are read with their stride, keys as if they lay without gaps."""
    cosine, sine = angles(inputs)
    results = both(inputs, cosine, sine)
    key = inputs.key
    if WRONG and key.numel() and not key.is_contiguous():
        read = key.as_strided(key.shape, (key.shape[1] * key.shape[2], key.shape[2], 1))
        results["key"] = turn(read, cosine, sine, inputs.style, inputs.rotary_dim)
    return results


@npudiff.implementation("rotary", name="b_rotary_06_keys_stay_interleaved", on_device=True)
def b06(inputs, target):
    """Neighbours become halves in queries, and not in keys."""
    cosine, sine = angles(inputs)
    results = both(inputs, cosine, sine)
    if WRONG and inputs.style == "interleaved_to_half":
        results["key"] = turn(inputs.key, cosine, sine, "interleaved", inputs.rotary_dim)
    return results


@npudiff.implementation("rotary", name="b_rotary_07_consecutive_by_ends", on_device=True)
def b07(inputs, target):
    """Rows of the table are a slice of it where the last position is as far from the first as there are tokens."""
    positions = inputs.positions
    if WRONG and not inputs.sections and len(positions) > 1 and int(positions[-1] - positions[0]) == len(positions) - 1:
        positions = int(positions[0]) + torch.arange(len(positions))
    return both(inputs, *angles(inputs, positions))


@npudiff.implementation("rotary", name="b_rotary_08_positions_in_16_bits", on_device=True)
def b08(inputs, target):
    """Positions are loaded as 16 bits."""
    return both(inputs, *angles(inputs, inputs.positions & 0xFFFF if WRONG else inputs.positions))


@npudiff.implementation("rotary", name="b_rotary_09_float32_in_16_bits", on_device=True)
def b09(inputs, target):
    """Cosines and sines pass through bfloat16 also where states have 32 bits."""
    cosine, sine = angles(inputs)
    if WRONG:
        dtype = torch.bfloat16 if inputs.query.dtype == torch.float32 else inputs.query.dtype
        cosine, sine = cosine.to(dtype).float(), sine.to(dtype).float()
    return both(inputs, cosine, sine)


@npudiff.implementation("rotary", name="b_rotary_10_second_from_written_first", on_device=True)
def b10(inputs, target):
    """In place: the second element of a pair is computed from the first one as it was just written; float32 only."""
    cosine, sine = angles(inputs)
    results = both(inputs, cosine, sine)
    if WRONG and inputs.query.dtype == torch.float32 and inputs.style == "half":
        pairs = inputs.rotary_dim // 2
        for name, states in results.items():
            second = getattr(inputs, name)[..., pairs : 2 * pairs].float()
            states[..., pairs : 2 * pairs] = (second * cosine[:, None] + states[..., :pairs].float() * sine[:, None]).to(states.dtype)
    return results


@npudiff.implementation("rotary", name="b_rotary_11_rest_of_keys_not_copied", on_device=True)
def b11(inputs, target):
    """Out of place: what is behind the rotary dim is copied for queries, and stays 0 for keys."""
    results = both(inputs, *angles(inputs))
    if WRONG:
        results["key"][..., inputs.rotary_dim :] = 0
    return results


@npudiff.implementation("rotary", name="b_rotary_12_sines_at_half_a_head", on_device=True)
def b12(inputs, target):
    """Sections of sines begin at the same column of the table's half as if all sections were as wide as the first."""
    cosine, sine = angles(inputs)
    if WRONG and len(inputs.sections) > 1:
        half, first, wrong = inputs.rotary_dim // 2, inputs.sections[0], []
        for kind, count in enumerate(inputs.sections):
            rows = inputs.cos_sin_cache[inputs.positions[kind]].float()
            columns = (half + kind * first + torch.arange(count)).clamp(max=2 * half - 1)
            wrong.append(rows[:, columns])
        sine = torch.cat(wrong, dim=1)
    return both(inputs, cosine, sine)


@npudiff.implementation("rotary", name="b_rotary_13_more_than_64_heads", on_device=True)
def b13(inputs, target):
    """A program has lanes for 64 heads, and there is one program per token."""
    results = both(inputs, *angles(inputs))
    if WRONG:
        results["query"][:, 64:] = inputs.query[:, 64:]
    return results
