"""What ``npu_kv_rmsnorm_rope_cache`` refuses, with the messages, and what is not simulated."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, NotSimulated, OperatorRejected, use_profile

VERSIONS = ["", "_v2", "_v2_functional"]


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def good(lab, /, **other):
    tensors, gamma, cos, sin = lab.inputs(2, 3)
    k_cache, ckv_cache = lab.caches(3, 4)
    arguments = {"kv": tensors, "gamma": gamma, "cos": cos, "sin": sin, "index": torch.arange(6)}
    return arguments | {"k_cache": k_cache, "ckv_cache": ckv_cache, "cache_mode": "PA"} | other


def run(arguments, version=""):
    names = ("kv", "gamma", "cos", "sin", "index", "k_cache", "ckv_cache")
    options = {name: value for name, value in arguments.items() if name not in names}
    operator = getattr(torch.ops.npu, f"npu_kv_rmsnorm_rope_cache{version}")
    return operator(*(arguments[name] for name in names), **options)


def ones(*shape, dtype=torch.bfloat16):
    return torch.ones(*shape, dtype=dtype)


CASES = [
    ({"kv": ones(6, 576)}, r"kv was of rank 2, \[6, 576\]; allowed: rank 4 \[ERR01003\]"),
    ({"gamma": ones(1, 512)}, r"gamma was of rank 2, \[1, 512\]; allowed: rank 1 \[ERR01003\]"),
    ({"cos": ones(6, 64)}, r"cos was of rank 2, \[6, 64\]; allowed: rank 4 \[ERR01003\]"),
    ({"sin": ones(6, 64)}, r"sin was of shape \[6, 64\]; allowed: \[2, 1, 3, 64\], \[B, 1, S, 64\] \[aclnn 161002\]"),
    ({"kv": ones(2, 1, 3, 576, dtype=torch.float32)}, "kv was float32; allowed: float16 or bfloat16"),
    ({"kv": ones(2, 2, 3, 576)}, r"kv was of shape \[2, 2, 3, 576\]; allowed: \[2, 1, 3, 576\]"),
    ({"kv": ones(2, 1, 3, 192)}, r"kv was of shape \[2, 1, 3, 192\]"),
    ({"gamma": ones(576)}, r"gamma was of shape \[576\]; allowed: \[512\]"),
    ({"gamma": ones(512, dtype=torch.float32)}, "gamma was float32; allowed: bfloat16, as kv"),
    ({"cos": ones(1, 1, 3, 64)}, r"cos was of shape \[1, 1, 3, 64\]; allowed: \[2, 1, 3, 64\]"),
    ({"cos": ones(2, 1, 3, 64, dtype=torch.float16)}, "cos was float16; allowed: bfloat16, as kv"),
    ({"sin": ones(2, 1, 3, 64, dtype=torch.float32)}, "sin was float32; allowed: bfloat16, as kv"),
    ({"index": torch.arange(6).int()}, "index was int32; allowed: int64"),
    ({"index": torch.arange(5)}, r"index was of shape \[5\]; allowed: \[6\], \[B \* S\]"),
    ({"index": torch.arange(6).view(2, 3)}, r"index was of shape \[2, 3\]; allowed: \[6\]"),
    ({"cache_mode": "PA_BLK_BNSD"}, r"index was of shape \[6\]; allowed: \[2\], \[B \* ceil\(S / block size\)\]"),
    ({"cache_mode": "PA_BSND"}, "cache_mode was 'PA_BSND'; allowed: Norm, PA, PA_BNSD, PA_NZ, PA_BLK_BNSD, PA_BLK_NZ"),
    ({"cache_mode": "norm"}, "cache_mode was 'norm'"),
    ({"cache_mode": ""}, "cache_mode was ''"),
    ({"k_rope_offset": ones(64)}, r"k_rope_offset was of shape \[64\]; allowed: None: offsets are not supported"),
    ({"c_kv_offset": ones(512)}, r"c_kv_offset was of shape \[512\]; allowed: None"),
    ({"k_cache": ones(12, 64)}, r"k_cache was of rank 2, \[12, 64\]; allowed: rank 4"),
    ({"ckv_cache": ones(12, 512)}, r"ckv_cache was of rank 2, \[12, 512\]; allowed: rank 4"),
    ({"ckv_cache": ones(3, 8, 1, 512)}, r"ckv_cache was of shape \[3, 8, 1, 512\]; allowed: \[3, 4, 1, 512\]"),
    ({"ckv_cache": ones(4, 4, 1, 512)}, r"ckv_cache was of shape \[4, 4, 1, 512\]"),
    ({"k_cache": ones(3, 4, 1, 64, dtype=torch.float16)}, "k_cache was float16; allowed: bfloat16"),
    ({"ckv_cache": ones(3, 4, 1, 512, dtype=torch.int8)}, "ckv_cache was int8; allowed: bfloat16"),
    ({"k_cache": ones(3, 0, 1, 64)}, "k_cache was of block size 0; allowed: at least 1"),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("other", "message"), CASES)
def test_rejections(kv, version, other, message):
    arguments = good(kv, **other)
    with pytest.raises(OperatorRejected, match=f"npu_kv_rmsnorm_rope_cache{version}: {message}"):
        run(arguments, version)
    if "ckv_cache" not in other:
        assert (arguments["ckv_cache"] == kv.MARK).all()


def test_swapped_caches_are_refused(kv):
    k_cache, ckv_cache = kv.caches(3, 4)
    with pytest.raises(OperatorRejected, match=r"k_cache was of shape \[3, 4, 1, 512\]; allowed: \[3, 4, 1, 64\]"):
        run(good(kv, k_cache=ckv_cache, ckv_cache=k_cache))


@pytest.mark.parametrize(
    ("first", "second", "index", "message"),
    [
        (2, 2, (2, 3), "k_cache was of cache length 2; allowed: at least S = 3"),
        (3, 4, (2, 3), r"k_cache was of shape \[3, 1, 4, 64\]; allowed: \[2, 1, 4, 64\], \[B, 1, cache length, 64\]"),
        (2, 4, (6,), r"index was of shape \[6\]; allowed: \[2, 3\], \[B, S\]"),
    ],
)
def test_rejections_of_norm_mode(kv, first, second, index, message):
    k_cache, ckv_cache = kv.caches(first, second, norm=True)
    other = {"k_cache": k_cache, "ckv_cache": ckv_cache, "index": torch.zeros(index).long(), "cache_mode": "Norm"}
    with pytest.raises(OperatorRejected, match=message):
        run(good(kv, **other))


def quantised(lab, /, **other):
    k_cache, ckv_cache = lab.caches(3, 4, dtype=torch.int8)
    scales = {"k_rope_scale": torch.ones(64), "c_kv_scale": torch.ones(512)}
    return good(lab, k_cache=k_cache, ckv_cache=ckv_cache, **scales) | other


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"k_rope_scale": torch.ones(64).half()}, "k_rope_scale was float16; allowed: float32"),
        ({"k_rope_scale": torch.ones(1)}, r"k_rope_scale was of shape \[1\]; allowed: \[64\]"),
        ({"c_kv_scale": torch.ones(64)}, r"c_kv_scale was of shape \[64\]; allowed: \[512\]"),
        ({"c_kv_scale": None}, "c_kv_scale was None; allowed: a scale for both caches, or for neither"),
        ({"k_cache": ones(3, 4, 1, 64)}, "k_cache was bfloat16; allowed: int8"),
    ],
)
def test_rejections_of_quantised_caches(kv, other, message):
    run(quantised(kv))
    with pytest.raises(OperatorRejected, match=message):
        run(quantised(kv, **other))


def test_documented_number_of_blocks(kv):
    arguments = good(kv, k_cache=ones(1, 8, 1, 64), ckv_cache=ones(1, 8, 1, 512))
    run(arguments)
    with changed(kv_rmsnorm_block_count="documented"):
        run(good(kv))
        with pytest.raises(OperatorRejected, match="k_cache was of 1 blocks; allowed: at least 2, ceil"):
            run(arguments)


def test_caches_with_gaps_are_not_simulated(kv):
    both = [torch.stack([cache] * 2, 1)[:, 0] for cache in kv.caches(3, 4)]
    with pytest.raises(NotSimulated, match="k_cache was not contiguous"):
        run(good(kv, k_cache=both[0], ckv_cache=both[1]))


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_cache_dtypes_of_version_2(kv, version):
    run(good(kv, k_cache_dtype=15, ckv_cache_dtype=15), version)
    run(quantised(kv, k_cache_dtype=1, ckv_cache_dtype=1), version)
    for argument in ("k_cache_dtype", "ckv_cache_dtype"):
        with pytest.raises(NotSimulated, match=f"{argument} was 290, which is not simulated; simulated: None or 15"):
            run(good(kv, **{argument: 290}), version)
