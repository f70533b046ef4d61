"""What ``npu_mla_prolog`` refuses, with the messages, and what is not simulated."""

import pytest
import torch

from npudiff.device.simulator import PROFILES, NotSimulated, OperatorRejected, use_profile

VERSIONS = ["", "_v2", "_v3", "_v3_functional"]
V3 = ["_v3", "_v3_functional"]


def ones(*shape, dtype=torch.bfloat16):
    return torch.ones(shape, dtype=dtype)


def run(mla, version, spoil, *, tokens=(3,)):
    """Call with tiny sizes: He 64, Hcq 32, N 2, D 16, Dr 16, Hckv 32, two blocks of 4."""
    spoil = dict(spoil)
    given = mla.inputs(tokens)
    both = mla.caches()
    caches = spoil.pop("kv_cache", both[0]), spoil.pop("kr_cache", both[1])
    index = spoil.pop("cache_index", torch.arange(torch.Size(tokens).numel()).view(tokens))
    given |= {name: spoil.pop(name) for name in mla.INPUTS if name in spoil}
    try:
        return mla.call(given, index, caches, version, **spoil)
    except (OperatorRejected, NotSimulated):
        assert all((cache == mla.MARK).all() for cache in both)
        raise


half = {"dtype": torch.float16}

# What is spoiled, and the message.
REFUSED = [
    ({"token_x": ones(64)}, r"token_x was of rank 1; allowed: rank 2, \[T, He\], or 3, \[B, S, He\] \[ERR01003\]"),
    ({"token_x": ones(1, 1, 3, 64)}, r"token_x was of rank 4; .*\[ERR01003\]"),
    ({"weight_uk": ones(32, 32)}, r"weight_uk was of rank 2, \[32, 32\]; allowed: rank 3 \[ERR01003\]"),
    ({"rope_sin": ones(16)}, r"rope_sin was of rank 1; .*\[ERR01003\]"),
    ({"rope_sin": ones(3, 1, 1, 16)}, r"rope_sin was of rank 4; .*\[ERR01003\]"),
    ({"token_x": ones(3, 64, **half)}, r"token_x was float16; allowed: bfloat16 \[aclnn 161002\]"),
    ({"token_x": ones(3, 64, dtype=torch.float32)}, "token_x was float32; allowed: bfloat16"),
    ({"weight_dq": ones(64, 32, **half)}, "weight_dq was float16; allowed: bfloat16"),
    ({"weight_uq_qr": ones(32, 64, **half)}, "weight_uq_qr was float16; allowed: bfloat16"),
    ({"weight_uk": ones(2, 16, 32, **half)}, "weight_uk was float16; allowed: bfloat16"),
    ({"weight_uk": ones(2, 16, 32, dtype=torch.int8)}, "weight_uk was int8; allowed: bfloat16"),
    ({"weight_dkv_kr": ones(64, 48, **half)}, "weight_dkv_kr was float16; allowed: bfloat16"),
    ({"rmsnorm_gamma_cq": ones(32, dtype=torch.float32)}, "rmsnorm_gamma_cq was float32; allowed: bfloat16"),
    ({"rmsnorm_gamma_ckv": ones(32, **half)}, "rmsnorm_gamma_ckv was float16; allowed: bfloat16"),
    ({"rope_sin": ones(3, 16, dtype=torch.float32)}, "rope_sin was float32; allowed: bfloat16"),
    ({"rope_cos": ones(3, 16, **half)}, "rope_cos was float16; allowed: bfloat16"),
    ({"kv_cache": ones(2, 4, 1, 32, **half)}, "kv_cache was float16; allowed: bfloat16"),
    ({"kr_cache": ones(2, 4, 1, 16, dtype=torch.int8)}, "kr_cache was int8; allowed: bfloat16"),
    ({"weight_dq": ones(64, 4, 8)}, r"weight_dq was of rank 3, \[64, 4, 8\]; allowed: rank 2"),
    ({"weight_dq": ones(32, 64)}, r"weight_dq was of shape \[32, 64\]; allowed: \[64, 64\], \[He, Hcq\]"),
    ({"weight_uq_qr": ones(64, 32)}, r"weight_uq_qr was of shape \[64, 32\]; allowed: \[32, 64\], \[Hcq, N \* \(D"),
    ({"weight_uk": ones(3, 16, 32)}, r"weight_uq_qr was of shape \[32, 64\]; allowed: \[32, 96\]"),
    ({"weight_uk": ones(2, 32, 16)}, r"weight_uq_qr was of shape \[32, 64\]; allowed: \[32, 96\]"),
    ({"weight_dkv_kr": ones(64, 32)}, r"weight_dkv_kr was of shape \[64, 32\]; allowed: \[64, 48\], \[He, Hckv \+ Dr"),
    ({"rmsnorm_gamma_cq": ones(64)}, r"rmsnorm_gamma_cq was of shape \[64\]; allowed: \[32\], \[Hcq\]"),
    ({"rmsnorm_gamma_ckv": ones(48)}, r"rmsnorm_gamma_ckv was of shape \[48\]; allowed: \[32\], \[Hckv\]"),
    ({"rope_sin": ones(2, 16)}, r"rope_sin was of shape \[2, 16\]; allowed: \[3, 16\], \[T, Dr\]"),
    ({"rope_cos": ones(3, 8)}, r"rope_cos was of shape \[3, 8\]; allowed: \[3, 16\], \[T, Dr\]"),
    ({"rope_cos": ones(3, 1, 16)}, r"rope_cos was of shape \[3, 1, 16\]; allowed: \[3, 16\], \[T, Dr\]"),
    ({"rope_cos": ones(1, 16)}, r"rope_cos was of shape \[1, 16\]"),
    ({"kv_cache": ones(2, 4, 32)}, r"kv_cache was of rank 3, \[2, 4, 32\]; allowed: rank 4"),
    ({"kr_cache": ones(8, 16)}, r"kr_cache was of rank 2, \[8, 16\]; allowed: rank 4"),
    (
        {"kv_cache": ones(2, 4, 2, 16)},
        r"kv_cache was of shape \[2, 4, 2, 16\]; allowed: \[2, 4, 1, 32\], \[blocks, block",
    ),
    ({"kv_cache": ones(2, 2, 4, 16)}, r"kv_cache was of shape \[2, 2, 4, 16\]; allowed: \[2, 2, 1, 32\]"),
    ({"kr_cache": ones(2, 8, 1, 16)}, r"kr_cache was of shape \[2, 8, 1, 16\]; allowed: \[2, 4, 1, 16\]"),
    ({"kr_cache": ones(3, 4, 1, 16)}, r"kr_cache was of shape \[3, 4, 1, 16\]; allowed: \[2, 4, 1, 16\]"),
    ({"cache_index": torch.arange(3).int()}, r"cache_index was int32; allowed: int64 \[aclnn 161002\]"),
    ({"cache_index": torch.arange(3).float()}, "cache_index was float32; allowed: int64"),
    ({"cache_index": torch.arange(4)}, r"cache_index was of shape \[4\]; allowed: \[3\], the tokens of token_x"),
    ({"cache_index": torch.arange(3).view(3, 1)}, r"cache_index was of rank 2, \[3, 1\]; allowed: rank 1"),
    ({"cache_mode": "PA_BNSD"}, "cache_mode was 'PA_BNSD'; allowed: PA_BSND, PA_NZ"),
    ({"cache_mode": "Norm"}, "cache_mode was 'Norm'; allowed: PA_BSND, PA_NZ"),
    ({"cache_mode": "pa_nz"}, "cache_mode was 'pa_nz'"),
    ({"cache_mode": ""}, "cache_mode was ''"),
]


@pytest.mark.few(59)
@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_rejections(mla, version, spoil, message):
    run(mla, version, {})
    with pytest.raises(OperatorRejected, match=f"npu_mla_prolog{version}: {message}"):
        run(mla, version, spoil)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", VERSIONS)
def test_tokens_of_two_axes(mla, version):
    """[B, S, He] goes with [B, S, Dr] and an index [B, S]."""
    run(mla, version, {}, tokens=(2, 3))
    for spoil, message in (
        ({"rope_cos": ones(6, 16)}, r"rope_cos was of shape \[6, 16\]; allowed: \[2, 3, 16\], \[B, S, Dr\]"),
        ({"rope_sin": ones(2, 1, 16)}, r"rope_sin was of shape \[2, 1, 16\]; allowed: \[2, 3, 16\]"),
        ({"cache_index": torch.arange(6)}, r"cache_index was of rank 1, \[6\]; allowed: rank 2"),
        ({"cache_index": torch.zeros(3, 2).long()}, r"cache_index was of shape \[3, 2\]; allowed: \[2, 3\]"),
    ):
        with pytest.raises(OperatorRejected, match=message):
            run(mla, version, spoil, tokens=(2, 3))


@pytest.mark.usefixtures("free")
def test_the_sine_must_have_the_rank_of_token_x(mla):
    spoil = {"rope_sin": ones(3, 1, 16)}
    for version in V3:
        with pytest.raises(OperatorRejected, match=r"rope_sin was of rank 3; allowed: the rank of token_x, 2 \[ERR"):
            run(mla, version, spoil)
    for version in ("", "_v2"):
        with pytest.raises(OperatorRejected, match=r"rope_sin was of shape \[3, 1, 16\]; allowed: \[3, 16\]"):
            run(mla, version, spoil)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", [("PA_NZ",), ["PA_NZ"], 1, None])
def test_a_mode_that_is_no_string_does_not_reach_the_operator(mla, version, mode):
    """A trailing comma makes a tuple (sglang #14423); the dispatcher refuses it."""
    with pytest.raises((TypeError, RuntimeError), match="cache_mode") as caught:
        run(mla, version, {"cache_mode": mode})
    assert not isinstance(caught.value, OperatorRejected)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", V3)
def test_rejections_of_version_3(mla, version):
    for spoil, message in (
        ({"cache_index": None}, "cache_index was None; allowed: a tensor, with cache_mode PA_BSND"),
        ({"weight_quant_mode": 3}, r"weight_quant_mode was 3, which is for Ascend 950; allowed: .* \[ERR01003\]"),
        ({"weight_quant_mode": 5}, "weight_quant_mode was 5, which is for Ascend 950"),
        ({"weight_quant_mode": 4}, "weight_quant_mode was 4, which is for Ascend 950"),
        ({"weight_quant_mode": 6}, "weight_quant_mode was 6; allowed: 0 or 1 or 2"),
        ({"weight_quant_mode": -1}, "weight_quant_mode was -1"),
        *[
            ({"kv_cache_quant_mode": mode}, f"kv_cache_quant_mode was {mode}; allowed: 0 with weight_quant_mode 0")
            for mode in (1, 2, 3, 4)
        ],
        ({"query_quant_mode": 1}, "query_quant_mode was 1; allowed: 0 with kv_cache_quant_mode 0"),
        ({"ckvkr_repo_mode": 2}, "ckvkr_repo_mode was 2; allowed: 0 with kv_cache_quant_mode 0"),
        ({"quant_scale_repo_mode": -1}, "quant_scale_repo_mode was -1; allowed: 0"),
        ({"k_nope_clip_alpha": torch.ones(1)}, r"k_nope_clip_alpha was float32 \[1\]; allowed: None"),
    ):
        with pytest.raises(OperatorRejected, match=f"npu_mla_prolog{version}: {message}"):
            run(mla, version, spoil)


SCALES = ["dequant_scale_x", "dequant_scale_w_dq", "dequant_scale_w_uq_qr", "dequant_scale_w_dkv_kr"]
SCALES += ["quant_scale_ckv", "quant_scale_ckr", "smooth_scales_cq"]


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", SCALES)
def test_scales_do_not_belong_to_bfloat16(mla, version, name):
    message = rf"npu_mla_prolog{version}: {name} was float32 \[1, 32\]; allowed: None with what is quantised"
    with pytest.raises(OperatorRejected, match=message):
        run(mla, version, {name: torch.ones(1, 32)})


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["token_x", "weight_dq", "weight_uq_qr", "weight_dkv_kr"])
def test_int8_alone(mla, version, name):
    """Versions 1 and 2 take it for a quantised call, and miss the rest of that."""
    refused = f"{name} was int8; allowed: bfloat16"
    if version == "_v2" and name == "token_x":
        refused = "weight_dq was bfloat16; allowed: int8"
    elif version in ("", "_v2") and name == "weight_uq_qr":
        refused = r"dequant_scale_w_uq_qr was None; allowed: float32 \[1, 64\]"
    with pytest.raises(OperatorRejected, match=f"npu_mla_prolog{version}: {refused}"):
        run(mla, version, {name: torch.ones_like(mla.inputs()[name], dtype=torch.int8)})


NOT_SIMULATED = [
    *[({"cache_mode": mode}, f"cache_mode was '{mode}'") for mode in ("PA_BLK_BSND", "PA_BLK_NZ", "BSND", "TND")],
    ({"token_x_dtype": 1}, "token_x_dtype was 1"),
    ({"kv_cache_dtype": 290}, "kv_cache_dtype was 290"),
]


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", V3)
@pytest.mark.parametrize(("spoil", "message"), NOT_SIMULATED)
def test_not_simulated(mla, version, spoil, message):
    with pytest.raises(NotSimulated, match=f"npu_mla_prolog{version}: {message}, which is not simulated; simulated: "):
        run(mla, version, spoil)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", ["", "_v2"])
@pytest.mark.parametrize("mode", ["PA_BLK_BSND", "PA_BLK_NZ", "BSND", "TND"])
def test_cache_modes_that_only_version_3_has(mla, version, mode):
    with pytest.raises(OperatorRejected, match=f"cache_mode was '{mode}'; allowed: PA_BSND, PA_NZ"):
        run(mla, version, {"cache_mode": mode})


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", V3)
def test_options_without_effect(mla, version):
    expected = run(mla, version, {})
    more = {"actual_seq_len": torch.tensor([3], dtype=torch.int32), "tile_size": 64, "token_x_dtype": 15}
    result = run(mla, version, more | {"weight_dq_dtype": None})
    assert torch.equal(result.query, expected.query)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["kv_cache", "kr_cache"])
def test_caches_with_gaps_are_not_simulated(mla, version, name):
    cache = ones(2, 2, 4, 1, 32 if name == "kv_cache" else 16)[:, 0]
    if version == "_v3_functional":
        # Its copies have none.
        run(mla, version, {name: cache})
        return
    with pytest.raises(NotSimulated, match=f"{name} was not contiguous, strides"):
        run(mla, version, {name: cache})


@pytest.mark.parametrize("version", VERSIONS)
def test_formats_of_weights(mla, version):
    weights = ("weight_dq", "weight_uq_qr", "weight_dkv_kr")
    cast = {name: torch.ops.npu.npu_format_cast(mla.inputs()[name], 29) for name in weights}
    with mla.changed():
        expected = run(mla, version, {})
        assert torch.equal(run(mla, version, cast).query, expected.query)
    with mla.changed(mla_prolog_weight_format="fractal_nz"):
        assert torch.equal(run(mla, version, cast).query, expected.query)
        for name in weights:
            with pytest.raises(
                OperatorRejected, match=rf"{name} was in format ND; allowed: FRACTAL_NZ: npu_format_cast"
            ):
                run(mla, version, cast | {name: mla.inputs()[name]})
    assert PROFILES["8.5"].mla_prolog_weight_format == "any"
    assert PROFILES["pessimistic"].mla_prolog_weight_format == "fractal_nz"


def shaped(mla, version, *, tokens=(1,), block_size=128, **sizes):
    """Call with the real sizes but for those that are given; memory is shared, so that nothing is large."""
    size = {"hidden": 7168, "rank": 1536, "heads": 1, "nope": 128, "latent": 512, "rope": 64} | sizes
    down, up = size["latent"] + size["rope"], size["heads"] * (size["nope"] + size["rope"])
    shapes = {
        "token_x": (*tokens, size["hidden"]),
        "weight_dq": (size["hidden"], size["rank"]),
        "weight_uq_qr": (size["rank"], up),
        "weight_uk": (size["heads"], size["nope"], size["latent"]),
        "weight_dkv_kr": (size["hidden"], down),
        "rmsnorm_gamma_cq": (size["rank"],),
        "rmsnorm_gamma_ckv": (size["latent"],),
        "rope_sin": (*tokens, size["rope"]),
        "rope_cos": (*tokens, size["rope"]),
    }
    given = {name: ones(1).expand(shape) for name, shape in shapes.items()}
    both = mla.caches(1, block_size, latent=size["latent"], rope=size["rope"])
    return mla.call(given, ones(1, dtype=torch.int64).mul(-1).expand(tokens), both, version)


SIZES = [
    # Version, size, what is said of it by the wheel and by newer sources.
    ("", {}, None, None),
    ("_v2", {"heads": 64}, None, None),
    ("", {"hidden": 6144}, "token_x was of He = 6144; allowed: 7168", "token_x was of He = 6144; allowed: 7168"),
    ("_v2", {"block_size": 32}, "kv_cache was of block size = 32; allowed: 16 or 128", "kv_cache was of block size"),
    ("_v2", {"rank": 2048}, "weight_dq was of Hcq = 2048; allowed: 1536", "weight_dq was of Hcq = 2048; allowed: 1536"),
    ("_v3", {}, None, None),
    ("_v3", {"hidden": 6144, "block_size": 16}, None, None),
    ("_v3", {"hidden": 7680}, None, None),
    ("_v3", {"hidden": 1024}, "token_x was of He = 1024; allowed: 6144 or 7168 or 7680", None),
    ("_v3", {"hidden": 512}, "token_x was of He = 512", "token_x was of He = 512; allowed: 1024 or 2048 or"),
    ("_v3", {"rank": 2048}, "weight_dq was of Hcq = 2048; allowed: 1536", None),
    ("_v3", {"nope": 192}, "weight_uk was of D = 192; allowed: 128", None),
    ("_v3", {"nope": 64}, "weight_uk was of D = 64", "weight_uk was of D = 64; allowed: 128 or 192"),
    ("_v3", {"heads": 3}, "weight_uk was of N = 3; allowed: 1 or 2 or 4", "weight_uk was of N = 3; allowed: 1 or 2"),
    ("_v3", {"latent": 256}, "weight_uk was of Hckv = 256; allowed: 512", "weight_uk was of Hckv = 256; allowed: 512"),
    ("_v3", {"rope": 32}, "rope_sin was of Dr = 32; allowed: 64", "rope_sin was of Dr = 32; allowed: 64"),
    ("_v3", {"block_size": 48}, "kv_cache was of block size = 48; allowed: 16 or 128", None),
    ("_v3", {"block_size": 24}, "kv_cache was of block size", "kv_cache was of block size = 24; allowed: 16 to 1024"),
    ("_v3", {"block_size": 1040}, "kv_cache was of block size", "kv_cache was of block size = 1040; .*in steps of 16"),
    ("_v3_functional", {"hidden": 1024}, "token_x was of He = 1024", None),
    ("", {"tokens": (1, 17)}, "token_x was of S = 17; allowed: at most 16", "token_x was of S = 17"),
    ("_v3", {"tokens": (65537, 0)}, "token_x was of B = 65537; allowed: at most 65536", "token_x was of B = 65537"),
    ("_v3", {"tokens": (1048577,)}, "token_x was of T = 1048577; allowed: at most 1048576", "token_x was of T = 10485"),
]


@pytest.mark.parametrize(("version", "size", "documented", "newer"), SIZES)
def test_sizes(mla, version, size, documented, newer):
    for profile, message in (("documented", documented), ("newer", newer)):
        with use_profile("8.5") if profile == "documented" else mla.changed(mla_sizes=profile):
            if message is None:
                shaped(mla, version, **size)
                continue
            with pytest.raises(OperatorRejected, match=f"npu_mla_prolog{version}: {message}"):
                shaped(mla, version, **size)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", VERSIONS)
def test_free_sizes_still_have_to_be_possible(mla, version):
    tiny = {"hidden": 8, "rank": 8, "heads": 1, "nope": 8, "latent": 24, "rope": 6, "block_size": 3}
    shaped(mla, version, **tiny)
    for spoil, message in (
        ({"rope": 7}, "rope_sin was of Dr = 7; allowed: an even number"),
        ({"heads": 0}, "weight_uk was of N = 0; allowed: at least 1"),
        ({"hidden": 0}, "token_x was of He = 0; allowed: at least 1"),
        ({"block_size": 0}, "kv_cache was of block size = 0; allowed: at least 1"),
        ({"tokens": (1, 17)}, "token_x was of S = 17"),
    ):
        with pytest.raises(OperatorRejected, match=message):
            shaped(mla, version, **tiny | spoil)
    for size, message in (
        ({"latent": 24}, "weight_uk was of Hckv = 24; allowed: a multiple of 16 with cache_mode PA_NZ"),
        ({"rope": 24}, "rope_sin was of Dr = 24; allowed: a multiple of 16 with cache_mode PA_NZ"),
    ):
        given, both = mla.inputs(**size), mla.caches(**size)
        mla.call(given, range(3), both, version)
        with pytest.raises(OperatorRejected, match=message):
            mla.call(given, range(3), both, version, cache_mode="PA_NZ")
