"""``mla_preprocess`` in float16, whose scales are words of the matrix unit, and with latents of int8."""

import pytest
import torch

from npudiff.device.simulator import UndefinedBehaviour
from npudiff.device.simulator.quantisation.hardware_scales import encoded

pytestmark = pytest.mark.usefixtures("free")

SLOTS = [5, 0, 7]
INT8 = {"ctkv_scale": torch.tensor([0.02]), "q_nope_scale": torch.tensor([0.4, -0.9])}


def converted(pre, dtype, mode):
    """Return the arguments of a call in a dtype, and both weights before they were tiled."""
    given, plain = pre.inputs()
    given = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value
        for name, value in given.items()
    } | {"slotmapping": torch.tensor(SLOTS, dtype=torch.int32), "cache_mode": mode}
    if dtype == torch.float16:
        given |= {name: encoded(given[name], None) for name in ("descale0", "descale1")}
    if mode == "int8_nzcache":
        given |= {name: scale.to(dtype) for name, scale in INT8.items()}
        given |= {name: given[name].to(torch.int8) for name in ("q_out0", "kv_cache_out0")}
    return given, plain


def whole(values):
    return values.half().float().round().clamp(-128, 127).to(torch.int8)


def golden(given, plain, scales, dtype):
    """Compute with whole tensors of torch: q_out0, q_out1, latent and rope key, before what stores them as int8."""
    wide = {name: value.float() for name, value in given.items() if isinstance(value, torch.Tensor)}

    def product(values, number):
        quantised = whole(values / wide[f"quant_scale{number}"] + wide[f"quant_offset{number}"])
        sums = quantised.double() @ plain[number].double().T + given[f"bias{number}"]
        return (sums.float() * scales[number]).to(dtype).float()

    def normed(values, gamma):
        return values * torch.rsqrt(values.square().mean(-1, keepdim=True) + 1e-6) * gamma

    def turn(values, cos, sin):
        first, second = values.chunk(2, -1)
        return (values * cos + torch.cat((-second, first), -1) * sin).to(dtype)

    latent, rope, query = product(wide["hiddenState"], 0).split((32, 16, 32), -1)
    heads = product(normed(query, wide["gamma1"]) + wide["beta1"], 1).view(3, 2, 32)
    nope = torch.einsum("thn,hnl->thl", heads[..., :16], wide["wuk"]).to(dtype)
    cos, sin = wide["cos"], wide["sin"]
    query_rope = turn(heads[..., 16:], cos.unsqueeze(1), sin.unsqueeze(1))
    return nope, query_rope, normed(latent, wide["gamma2"]), turn(rope, cos, sin)


def rows(cache, width):
    """Return rows of slots of a cache in NZ order, declared as [blocks, block size, 1, D]."""
    dim = cache.shape[-1]
    tiles = cache.reshape(len(cache), dim // width, 4, width)
    return torch.stack([tiles[slot // 4, :, slot % 4].flatten() for slot in SLOTS])


def near(one, other, step):
    """Whether values are the same, or a step apart: square roots and divisions may end on either side of a half."""
    off = (one.double() - other.double()).abs() - step * (1 + other.double().abs() * (step < 1))
    return off.max() <= 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["nzcache", "int8_nzcache"])
def test_values_are_those_of_whole_tensors(pre, dtype, mode):
    given, plain = converted(pre, dtype, mode)
    nope, query_rope, latent, rope = golden(given, plain, [pre.inputs()[0][f"descale{n}"] for n in (0, 1)], dtype)
    pre.call(given)
    step = torch.finfo(dtype).eps
    if mode == "int8_nzcache":
        scales = [given[name].float() for name in INT8]
        assert given["q_out0"].dtype == given["kv_cache_out0"].dtype == torch.int8
        assert near(given["q_out0"], whole(nope.float() * scales[1].view(1, 2, 1)), 1)
        assert near(rows(given["kv_cache_out0"], 32), whole(latent / scales[0]), 1)
        assert len(given["kv_cache_out0"].unique()) > 20, "not saturated"
    else:
        assert near(given["q_out0"], nope, step)
        assert near(rows(given["kv_cache_out0"], 16), latent.to(dtype), step)
    assert near(given["q_out1"], query_rope, step)
    assert near(rows(given["kv_cache_out1"], 16), rope, step)


def test_other_latents_stay(pre):
    given, _ = converted(pre, torch.bfloat16, "int8_nzcache")
    before = given["kv_cache_out0"].clone()
    pre.call(given)
    assert (given["kv_cache_out0"] == before).sum() >= before.numel() - 3 * 32


@pytest.mark.parametrize(
    ("dtype", "spoil", "message"),
    [
        (torch.float16, {"descale0": torch.ones(80)}, r"descale0 is float32 \[80\]; the kernel reads it as int64"),
        (torch.bfloat16, {"ctkv_scale": None}, "ctkv_scale is not given; the kernel reads it as bfloat16"),
        (torch.bfloat16, {"q_nope_scale": torch.ones(1).bfloat16()}, r"q_nope_scale is bfloat16 \[1\]"),
        (torch.bfloat16, {"ctkv_scale": torch.ones(1)}, r"ctkv_scale is float32 \[1\]"),
        (torch.bfloat16, {"q_out0": torch.ones(3, 2, 32).bfloat16()}, "q_out0 is bfloat16"),
        (torch.bfloat16, {"kv_cache_out0": torch.ones(2, 4, 1, 32).bfloat16()}, "kv_cache_out0 is bfloat16"),
        (torch.bfloat16, {"kv_cache_out1": torch.ones(2, 4, 1, 16).to(torch.int8)}, "kv_cache_out1 is int8"),
    ],
)
def test_what_the_kernel_does_not_expect(pre, dtype, spoil, message):
    given, _ = converted(pre, dtype, "int8_nzcache")
    with pytest.raises(UndefinedBehaviour, match=message):
        pre.call(given | spoil)
