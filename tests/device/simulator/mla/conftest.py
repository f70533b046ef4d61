"""Calls of ``npu_mla_prolog`` and their values, written as loops over elements in float64.

Inputs are multiples of small powers of two, so that sums are exact in float32 in any order, and a loop in float64 that
rounds where the operator rounds gives the same bits.
"""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from device.simulator import PROFILES, use_profile

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
