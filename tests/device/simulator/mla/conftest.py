"""Calls of ``npu_mla_prolog`` and their values, written as loops over elements in float64.

Inputs are multiples of small powers of two, so that sums are exact in float32 in any order, and a loop in float64 that
rounds where the operator rounds gives the same bits.
"""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from npudiff.device.simulator import PROFILES, use_profile

MARK = 9  # what caches hold before a call; no value of the inputs below comes near it

SIZES = {"hidden": 64, "rank": 32, "heads": 2, "nope": 16, "latent": 32, "rope": 16}
VERSIONS = ["", "_v2", "_v3", "_v3_functional"]
WEIGHTS = ("token_x", "weight_dq", "weight_uq_qr", "weight_uk", "weight_dkv_kr")
INPUTS = (*WEIGHTS, "rmsnorm_gamma_cq", "rmsnorm_gamma_ckv", "rope_sin", "rope_cos")
OUTPUTS = {
    "": ("query", "query_rope", "kv_cache", "kr_cache"),
    "_v2": ("query", "query_rope", "kv_cache", "kr_cache", "scale_nope"),
    "_v3": ("query", "query_rope", "scale_nope", "query_norm", "scale_norm"),
    "_v3_functional": ("query", "query_rope", "scale_nope", "query_norm", "scale_norm", "kv_cache", "kr_cache"),
}


def draw(generator, *shape, top, unit):
    """Return multiples of 1 / unit up to top / unit, as bfloat16."""
    return (torch.randint(-top, top + 1, shape, generator=generator) / unit).bfloat16()


def inputs(tokens=(3,), *, seed=0, **sizes):
    """Return the tensors of a call by name, without caches and index."""
    size = SIZES | sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "token_x": (*tokens, size["hidden"]),
        "weight_dq": (size["hidden"], size["rank"]),
        "weight_uq_qr": (size["rank"], size["heads"] * (size["nope"] + size["rope"])),
        "weight_uk": (size["heads"], size["nope"], size["latent"]),
        "weight_dkv_kr": (size["hidden"], size["latent"] + size["rope"]),
        "rmsnorm_gamma_cq": (size["rank"],),
        "rmsnorm_gamma_ckv": (size["latent"],),
        "rope_sin": (*tokens, size["rope"]),
        "rope_cos": (*tokens, size["rope"]),
    }
    return {name: draw(generator, *shape, top=20, unit=16) for name, shape in shapes.items()}


def caches(blocks=2, block_size=4, *, latent=32, rope=16):
    return tuple(torch.full((blocks, block_size, 1, dim), float(MARK)).bfloat16() for dim in (latent, rope))


def call(given, index, both, version="", **options):
    """Call a version and return what it gives by name; the caches are those that hold the rows afterwards."""
    operator = getattr(torch.ops.npu, f"npu_mla_prolog{version}")
    tensors = [given[name] for name in INPUTS]
    index = None if index is None else torch.as_tensor(index)
    if "v3" in version:
        outputs = operator(*tensors, *both, cache_index=index, **options)
    else:
        outputs = operator(*tensors, index, *both, **options)
    named = {"kv_cache": both[0], "kr_cache": both[1]} | dict(zip(OUTPUTS[version], outputs, strict=True))
    return SimpleNamespace(**named, tuple=outputs)


def changed(**choices):
    """Free sizes, unless they are chosen too."""
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **{"mla_sizes": "free"} | choices))


def to_bfloat16(values):
    """Round a list of numbers."""
    return torch.tensor(values, dtype=torch.float64).bfloat16().tolist()


def times(row, matrix):
    """Multiply a row by a matrix."""
    return [sum(row[i] * matrix[i][j] for i in range(len(matrix))) for j in range(len(matrix[0]))]


def norm(row, gamma, epsilon):
    root = math.sqrt(sum(value * value for value in row) / len(row) + epsilon)
    return [value / root * factor for value, factor in zip(row, gamma, strict=True)]


def turn(row, cos, sin):
    """Turn pairs (2i, 2i + 1) into (i, i + half)."""
    half = len(row) // 2
    turned = [0.0] * len(row)
    for i in range(half):
        real, imaginary = row[2 * i], row[2 * i + 1]
        turned[i] = real * cos[i] - imaginary * sin[i]
        turned[i + half] = imaginary * cos[i + half] + real * sin[i + half]
    return turned


def expected(given, *, epsilons=(1e-5, 1e-5), scales=(1.0, 1.0), rounded=True):
    """Return query, query_rope, query_norm, latent and rope key of every token as lists, rounded at the end.

    With ``rounded``, products are rounded before they are used.
    """
    lists = {name: tensor.double().tolist() for name, tensor in given.items()}
    flat = {name: given[name].double().flatten(0, -2).tolist() for name in ("token_x", "rope_sin", "rope_cos")}
    heads, nope, latent = given["weight_uk"].shape
    stage = to_bfloat16 if rounded else list
    rows = []
    for x, sin, cos in zip(flat["token_x"], flat["rope_sin"], flat["rope_cos"], strict=True):
        down = stage(times(x, lists["weight_dq"]))
        query_norm = [v * scales[0] for v in norm(down, lists["rmsnorm_gamma_cq"], epsilons[0])]
        up = stage(times(to_bfloat16(query_norm), lists["weight_uq_qr"]))
        width = len(up) // heads
        query, query_rope = [], []
        for head in range(heads):
            part = up[head * width : (head + 1) * width]
            query.append(to_bfloat16(times(to_bfloat16(part[:nope]), lists["weight_uk"][head])))
            query_rope.append(to_bfloat16(turn(part[nope:], cos, sin)))
        kv = stage(times(x, lists["weight_dkv_kr"]))
        normalised = norm(kv[:latent], lists["rmsnorm_gamma_ckv"], epsilons[1])
        rows.append(
            {
                "query": query,
                "query_rope": query_rope,
                "query_norm": to_bfloat16(query_norm),
                "latent": to_bfloat16([v * scales[1] for v in normalised]),
                "rope": to_bfloat16(turn(kv[latent:], cos, sin)),
            }
        )
    return SimpleNamespace(**{name: [row[name] for row in rows] for name in rows[0]})


def placed(cache, rows, slots, *, nz=False):
    """Return the elements of a cache of MARK, by address, after rows went to slots; None is skipped."""
    block_size, dim = cache.shape[1], cache.shape[3]
    flat = [float(MARK)] * cache.numel()
    for row, slot in zip(rows, slots, strict=True):
        if slot is None:
            continue
        block, offset = divmod(slot, block_size)
        for element, value in enumerate(row):
            if nz:
                tile, inside = divmod(element, 16)
                address = ((block * (dim // 16) + tile) * block_size + offset) * 16 + inside
            else:
                address = slot * dim + element
            flat[address] = value
    return flat


def tiled(weight):
    """Cut int8 [columns, inner] into [1, inner / 32, columns, 32], element by element."""
    columns, inner = weight.shape
    tiles = [[0] * (columns * 32) for _ in range(inner // 32)]
    for column, row in enumerate(weight.tolist()):
        for element, value in enumerate(row):
            tiles[element // 32][column * 32 + element % 32] = value
    return torch.tensor(tiles, dtype=torch.int8).view(1, inner // 32, columns, 32)


def preprocess_inputs(tokens=3, *, seed=0, blocks=2, block_size=4):
    """Return the arguments of ``mla_preprocess`` by name, with tiny sizes, and both weights before they were tiled."""
    generator = torch.Generator().manual_seed(seed)
    rank, heads, nope, latent, rope = 32, 2, 16, 32, 16
    rows, up = latent + rope + rank, heads * (nope + rope)

    def int8(*shape):
        return torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)

    def scales(count, top):
        return 0.5 ** torch.randint(top, top + 3, (count,), generator=generator).float()

    def bias(count):
        return torch.randint(-3000, 3000, (count,), generator=generator, dtype=torch.int32)

    plain = int8(rows, 64), int8(up, rank)
    both = caches(blocks, block_size)
    dummy = torch.zeros(64).bfloat16()
    given = {
        "hiddenState": draw(generator, tokens, 64, top=40, unit=16),
        "gamma0": dummy,
        "beta0": dummy,
        "wdqkv": tiled(plain[0]),
        "descale0": scales(rows, 13),
        "gamma1": draw(generator, rank, top=20, unit=16),
        "beta1": draw(generator, rank, top=8, unit=16),
        "wuq": tiled(plain[1]),
        "descale1": scales(up, 13),
        "gamma2": draw(generator, latent, top=20, unit=16),
        "cos": draw(generator, tokens, rope, top=16, unit=16),
        "sin": draw(generator, tokens, rope, top=16, unit=16),
        "wuk": draw(generator, heads, nope, latent, top=20, unit=16),
        "kv_cache": both[0],
        "kv_cache_rope": both[1],
        "slotmapping": torch.arange(tokens, dtype=torch.int32),
        "quant_scale0": torch.tensor([0.03]).bfloat16(),
        "quant_offset0": torch.tensor([7], dtype=torch.int8),
        "bias0": bias(rows),
        "quant_scale1": torch.tensor([0.017]).bfloat16(),
        "quant_offset1": torch.tensor([-5], dtype=torch.int8),
        "bias1": bias(up),
        "quant_mode": "per_tensor_quant_asymm",
        "q_out0": torch.full((tokens, heads, latent), float(MARK)).bfloat16(),
        "kv_cache_out0": both[0],
        "q_out1": torch.full((tokens, heads, rope), float(MARK)).bfloat16(),
        "kv_cache_out1": both[1],
    }
    return given, plain


def to_int8(value, scale, offset, *, away):
    half = float(torch.tensor(value / scale + offset, dtype=torch.float64).to(torch.float16))
    whole = math.copysign(math.floor(abs(half) + 0.5), half) if away else round(half)
    return max(-128, min(127, whole))


def turn_halves(row, cos, sin):
    """Turn pairs (i, i + half) in place."""
    half = len(row) // 2
    first = [row[i] * cos[i] - row[i + half] * sin[i] for i in range(half)]
    return first + [row[i + half] * cos[i + half] + row[i] * sin[i + half] for i in range(half)]


def preprocess_expected(given, plain, *, rounded=True, away=False, norm_rounded=False):
    """Return q_out0, q_out1, latent and rope key of every token as lists."""
    value = {name: tensor.double().tolist() for name, tensor in given.items() if isinstance(tensor, torch.Tensor)}
    stage = to_bfloat16 if rounded else list

    def quantised(row, number):
        scale, offset = value[f"quant_scale{number}"][0], value[f"quant_offset{number}"][0]
        return [to_int8(element, scale, offset, away=away) for element in row]

    def multiplied(row, weight, number):
        matrix = weight.long().tolist()
        sums = [sum(a * b for a, b in zip(row, column, strict=True)) for column in matrix]
        terms = zip(sums, value[f"bias{number}"], value[f"descale{number}"], strict=True)
        return stage([(total + bias) * descale for total, bias, descale in terms])

    outputs = []
    for x, cos, sin in zip(value["hiddenState"], value["cos"], value["sin"], strict=True):
        down = multiplied(quantised(x, 0), plain[0], 0)
        latent, rope, query = down[:32], down[32:48], down[48:]
        normalised = [a + b for a, b in zip(norm(query, value["gamma1"], 1e-6), value["beta1"], strict=False)]
        up = multiplied(quantised(to_bfloat16(normalised) if norm_rounded else normalised, 1), plain[1], 1)
        parts = [up[32 * head : 32 * head + 32] for head in range(2)]
        nope = [to_bfloat16(times(to_bfloat16(part[:16]), value["wuk"][head])) for head, part in enumerate(parts)]
        turned = [to_bfloat16(turn_halves(part[16:], cos, sin)) for part in parts]
        row = to_bfloat16(norm(latent, value["gamma2"], 1e-6)), to_bfloat16(turn_halves(rope, cos, sin))
        outputs.append((nope, turned, *row))
    return SimpleNamespace(**dict(zip(("q_out0", "q_out1", "latent", "rope"), zip(*outputs, strict=True), strict=True)))


def preprocess(given):
    positional = {name: value for name, value in given.items() if name not in PREPROCESS_OPTIONS}
    options = {name: value for name, value in given.items() if name in PREPROCESS_OPTIONS}
    return torch.ops.npu.mla_preprocess(*positional.values(), **options)


PREPROCESS_OUTPUTS = ("q_out0", "kv_cache_out0", "q_out1", "kv_cache_out1")
PREPROCESS_OPTIONS = (*PREPROCESS_OUTPUTS, "ctkv_scale", "q_nope_scale", "cache_mode", "quant_mode")


@pytest.fixture(scope="session")
def pre():
    return SimpleNamespace(
        inputs=preprocess_inputs, expected=preprocess_expected, call=preprocess, OUTPUTS=PREPROCESS_OUTPUTS
    )


@pytest.fixture(scope="session")
def mla():
    return SimpleNamespace(
        inputs=inputs,
        caches=caches,
        call=call,
        changed=changed,
        expected=expected,
        placed=placed,
        to_bfloat16=to_bfloat16,
        times=times,
        norm=norm,
        draw=draw,
        SIZES=SIZES,
        VERSIONS=VERSIONS,
        INPUTS=INPUTS,
        MARK=MARK,
    )


@pytest.fixture
def free(mla):
    """Any sizes that fit together."""
    with mla.changed():
        yield
