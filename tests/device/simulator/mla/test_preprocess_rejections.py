"""What ``mla_preprocess`` refuses, what has no defined result, and what is not simulated."""

import pytest
import torch

from npudiff.device.simulator import NotSimulated, OperatorRejected, UndefinedBehaviour


def run(pre, spoil):
    given, _ = pre.inputs()
    given |= spoil
    try:
        pre.call(given)
    except RuntimeError:
        assert all((given[name] == 9).all() for name in pre.OUTPUTS if name not in spoil)
        raise


def of(dtype, *shape):
    return torch.ones(shape, dtype=dtype)


bfloat16 = torch.bfloat16

# Tiny sizes: 64 hidden, columns 32 | 16 | 32, two heads of 16 | 16.
UNDEFINED = [
    ({"hiddenState": of(bfloat16, 3, 1, 64)}, "hiddenState is of rank 3; the kernel reads it as rank 2"),
    ({"hiddenState": of(torch.float32, 3, 64)}, r"hiddenState is float32 \[3, 64\]; the kernel reads it as bfloat16"),
    (
        {"hiddenState": of(bfloat16, 3, 96)},
        r"wdqkv is int8 \[1, 2, 80, 32\]; the kernel reads it as int8 \[1, 3, 80, 32",
    ),
    ({"hiddenState": of(bfloat16, 3, 80)}, "hidden is 80, not a multiple of 32"),
    ({"wdqkv": of(torch.int8, 80, 64)}, r"wdqkv is int8 \[80, 64\]; the kernel reads it as int8 \[1, 2, 80, 32\]"),
    ({"wdqkv": of(torch.int8, 1, 5, 64, 16)}, r"wdqkv is int8 \[1, 5, 64, 16\]"),
    ({"wdqkv": of(bfloat16, 1, 2, 80, 32)}, r"wdqkv is bfloat16 \[1, 2, 80, 32\]"),
    ({"descale0": of(torch.int64, 80)}, r"descale0 is int64 \[80\]; the kernel reads it as float32 \[80\]"),
    ({"descale0": of(torch.float32, 1)}, r"descale0 is float32 \[1\]"),
    ({"bias0": of(torch.float32, 80)}, r"bias0 is float32 \[80\]; the kernel reads it as int32 \[80\]"),
    ({"quant_scale0": of(torch.float32, 1)}, r"quant_scale0 is float32 \[1\]; the kernel reads it as bfloat16 \[1\]"),
    ({"quant_offset0": of(torch.int32, 1)}, r"quant_offset0 is int32 \[1\]; the kernel reads it as int8 \[1\]"),
    ({"quant_scale1": of(bfloat16, 2)}, r"quant_scale1 is bfloat16 \[2\]"),
    ({"quant_offset1": of(torch.int8, 64)}, r"quant_offset1 is int8 \[64\]"),
    ({"gamma1": of(bfloat16, 64)}, r"wdqkv is int8 \[1, 2, 80, 32\]; .*\[1, 2, 112, 32\]"),
    ({"gamma1": of(torch.float16, 32)}, r"gamma1 is float16 \[32\]"),
    ({"gamma1": of(bfloat16, 1, 32)}, "gamma1 is of rank 2"),
    ({"beta1": of(bfloat16, 31)}, r"beta1 is bfloat16 \[31\]; the kernel reads it as bfloat16 \[32\], or longer"),
    ({"beta1": of(torch.float32, 32)}, r"beta1 is float32 \[32\]"),
    (
        {"wuq": of(torch.int8, 1, 2, 32, 32)},
        r"wuq is int8 \[1, 2, 32, 32\]; the kernel reads it as int8 \[1, 1, 64, 32",
    ),
    ({"descale1": of(torch.float32, 1, 64)}, r"descale1 is float32 \[1, 64\]"),
    ({"bias1": of(torch.int32, 32)}, r"bias1 is int32 \[32\]; the kernel reads it as int32 \[64\]"),
    ({"gamma2": of(bfloat16, 1, 32)}, "gamma2 is of rank 2"),
    ({"cos": of(bfloat16, 2, 16)}, r"cos is bfloat16 \[2, 16\]; the kernel reads it as bfloat16 \[3, 16\]"),
    ({"sin": of(bfloat16, 3, 32)}, r"sin is bfloat16 \[3, 32\]"),
    ({"sin": of(torch.float32, 3, 16)}, r"sin is float32 \[3, 16\]"),
    ({"wuk": of(bfloat16, 2, 2, 16, 16)}, "wuk is of rank 4"),
    ({"wuk": of(torch.float32, 2, 16, 32)}, r"wuk is float32 \[2, 16, 32\]"),
    ({"slotmapping": torch.arange(3)}, r"slotmapping is int64 \[3\]; the kernel reads it as int32 \[3\]"),
    ({"slotmapping": torch.arange(2, dtype=torch.int32)}, r"slotmapping is int32 \[2\]"),
    (
        {"q_out0": of(bfloat16, 3, 2, 16)},
        r"q_out0 is bfloat16 \[3, 2, 16\]; the kernel reads it as bfloat16 \[3, 2, 32\]",
    ),
    ({"q_out1": of(torch.float16, 3, 2, 16)}, r"q_out1 is float16 \[3, 2, 16\]"),
    ({"kv_cache_out0": of(torch.int8, 2, 4, 1, 32)}, r"kv_cache_out0 is int8 \[2, 4, 1, 32\]"),
    ({"kv_cache_out0": of(bfloat16, 8, 32)}, "kv_cache_out0 is of rank 2"),
    ({"kv_cache_out0": of(bfloat16, 2, 2, 4, 16)}, r"kv_cache_out0 is bfloat16 \[2, 2, 4, 16\]; .*\[2, 2, 1, 32\]"),
    ({"kv_cache_out1": of(bfloat16, 2, 8, 1, 16)}, r"kv_cache_out1 is bfloat16 \[2, 8, 1, 16\]; .*\[2, 4, 1, 16\]"),
    ({"sin": of(bfloat16, 3, 32)[:, ::2]}, "sin is not contiguous, strides"),
    ({"q_out0": of(bfloat16, 2, 3, 32).transpose(0, 1)}, "q_out0 is not contiguous, strides"),
]


@pytest.mark.few(12)
@pytest.mark.usefixtures("free")
@pytest.mark.parametrize(("spoil", "message"), UNDEFINED, ids=[message[:40] for _, message in UNDEFINED])
def test_undefined(pre, spoil, message):
    run(pre, {})
    with pytest.raises(UndefinedBehaviour, match=f"mla_preprocess: {message}"):
        run(pre, spoil)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"cache_mode": "kvcache"}, "cache_mode was 'kvcache'; allowed: krope_ctkv, int8_nzcache, nzcache"),
        ({"cache_mode": "PA_NZ"}, "cache_mode was 'PA_NZ'"),
        ({"cache_mode": ""}, "cache_mode was ''"),
        (
            {"quant_mode": "no_quant"},
            "quant_mode was 'no_quant'; allowed: per_token_quant_symm, per_tensor_quant_asymm",
        ),
        ({"quant_mode": ""}, "quant_mode was ''"),
        ({"hiddenState": of(bfloat16, 1025, 64)}, "hiddenState was of 1025 tokens; allowed: 1 to 1024"),
        ({"hiddenState": of(bfloat16, 0, 64)}, "hiddenState was of 0 tokens; allowed: 1 to 1024"),
    ],
)
def test_rejections(pre, spoil, message):
    with pytest.raises(OperatorRejected, match=f"mla_preprocess: {message}"):
        run(pre, spoil)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("argument", ["cache_mode", "quant_mode"])
def test_a_mode_that_is_no_string_does_not_reach_the_operator(pre, argument):
    with pytest.raises(RuntimeError, match=f"for argument '{argument}'") as caught:
        run(pre, {argument: ("nzcache",)})
    assert not isinstance(caught.value, OperatorRejected)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ({"quant_mode": "per_token_quant_symm"}, "quant_mode was 'per_token_quant_symm', the default"),
        ({"quant_mode": None}, "quant_mode was 'per_token_quant_symm', the default"),
        ({"kv_cache_out0": of(bfloat16, 2, 2, 4, 1, 32)[:, 0]}, "kv_cache_out0 was not contiguous"),
        ({"kv_cache_out1": of(bfloat16, 2, 2, 4, 1, 16)[:, 0]}, "kv_cache_out1 was not contiguous"),
    ],
)
def test_not_simulated(pre, spoil, message):
    with pytest.raises(NotSimulated, match=f"mla_preprocess: {message}.*, which is not simulated; simulated: "):
        run(pre, spoil)


def shaped(pre, *, block_size=128, mode="krope_ctkv", **sizes):
    """Call with the real sizes but for those that are given; weights are zeros."""
    size = {"hidden": 7168, "rank": 1536, "latent": 512, "rope": 64, "nope": 128} | sizes
    rows, up = size["latent"] + size["rope"] + size["rank"], size["nope"] + size["rope"]
    given, _ = pre.inputs(1)
    given |= {
        "hiddenState": of(bfloat16, 1, size["hidden"]),
        "wdqkv": torch.zeros(1, size["hidden"] // 32, rows, 32, dtype=torch.int8),
        "descale0": of(torch.float32, rows),
        "bias0": torch.arange(rows, dtype=torch.int32),
        "gamma1": of(bfloat16, size["rank"]),
        "beta1": torch.zeros(size["hidden"]).bfloat16(),
        "wuq": torch.zeros(1, size["rank"] // 32, up, 32, dtype=torch.int8),
        "descale1": of(torch.float32, up),
        "bias1": torch.arange(up, dtype=torch.int32),
        "gamma2": of(bfloat16, size["latent"]),
        "cos": of(bfloat16, 1, size["rope"]),
        "sin": of(bfloat16, 1, size["rope"]).mul(0),
        "wuk": of(bfloat16, 1, size["nope"], size["latent"]),
        "q_out0": of(bfloat16, 1, 1, size["latent"]),
        "q_out1": of(bfloat16, 1, 1, size["rope"]),
        "kv_cache_out0": torch.zeros(1, block_size, 1, size["latent"]).bfloat16(),
        "kv_cache_out1": torch.zeros(1, block_size, 1, size["rope"]).bfloat16(),
        "cache_mode": mode,
    }
    pre.call(given)
    return given


def test_two_sizes_of_hidden_states(pre):
    """sgl-kernel-npu's own test has both."""
    assert shaped(pre, hidden=6144)["hiddenState"].shape[1] == 6144


def test_real_sizes(pre):
    """With weights of 0 the biases come through: columns [512 latent | 64 rope key | 1536 query], heads [128 | 64]."""
    given = shaped(pre)
    assert given["kv_cache_out1"][0, 0, 0].tolist() == torch.arange(512, 576).bfloat16().tolist()
    assert given["q_out1"][0, 0].tolist() == torch.arange(128, 192).bfloat16().tolist()
    assert given["q_out0"][0, 0].unique().tolist() == [127 * 64]
    latent = torch.arange(512).bfloat16().double()
    wanted = latent / (latent.pow(2).mean() + 1e-6).sqrt()
    assert ((given["kv_cache_out0"][0, 0, 0].double() - wanted).abs() <= 1.1 * 2.0**-8 * wanted).all()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("hidden", 5120, "hidden is 5120, and the kernel has 7168 or 6144 built in"),
        ("rank", 2048, "query rank is 2048, and the kernel has 1536 built in"),
        ("latent", 256, "latent is 256, and the kernel has 512 built in"),
        ("rope", 32, "rope is 32, and the kernel has 64 built in"),
        ("nope", 192, "nope is 192, and the kernel has 128 built in"),
    ],
)
def test_sizes_that_are_built_in(mla, pre, name, size, message):
    for profile in ("documented", "newer"):
        with mla.changed(mla_sizes=profile), pytest.raises(UndefinedBehaviour, match=f"mla_preprocess: {message}"):
            shaped(pre, **{name: size})
    with mla.changed():
        shaped(pre, **{name: size})


@pytest.mark.few(6)
@pytest.mark.parametrize("mode", ["krope_ctkv", "nzcache"])
@pytest.mark.parametrize("block_size", [1, 127, 128, 129, 255, 256, 257])
def test_block_sizes(mla, pre, mode, block_size):
    legal = block_size == 128 if mode == "nzcache" else block_size <= 128 or block_size == 256
    if legal:
        shaped(pre, block_size=block_size, mode=mode)
    else:
        allowed = "128 with cache_mode nzcache" if mode == "nzcache" else "up to 128, or 256"
        message = f"kv_cache_out0 was of block size {block_size}; allowed: {allowed}"
        with pytest.raises(OperatorRejected, match=message):
            shaped(pre, block_size=block_size, mode=mode)
    with mla.changed():
        shaped(pre, block_size=block_size, mode=mode)


def test_free_sizes_still_have_to_be_possible(mla, pre):
    with mla.changed():
        shaped(pre, rope=6, latent=24)
        for sizes, message in (
            ({"rank": 48}, "query rank is 48, not a multiple of 32"),
            ({"rope": 7}, "rope is 7, not a multiple of 2"),
            ({"rope": 24, "mode": "nzcache"}, "rope is 24, not a multiple of 16"),
            ({"latent": 24, "mode": "nzcache"}, "latent is 24, not a multiple of 16"),
            ({"nope": 0}, "nope is 0, not a multiple of 1"),
        ):
            with pytest.raises(UndefinedBehaviour, match=f"mla_preprocess: {message}"):
                shaped(pre, **sizes)
