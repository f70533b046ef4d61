"""``npu_kv_rmsnorm_rope_cache`` with ``v``, against the formula that CANN documents, in float64."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected

MARK = 9
MODES = ["Norm", "PA", "PA_BNSD", "PA_NZ", "PA_BLK_BNSD", "PA_BLK_NZ"]
BATCH, LENGTH, BLOCK = 2, 19, 16
DIMS = (192, 128)


def draw(*shape, seed=0, dtype=torch.bfloat16):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1).to(dtype)


def inputs(heads, table_length=LENGTH):
    """Return kv, gamma, cos, sin and v."""
    tables = [draw(BATCH, 1, table_length, 64, seed=seed) for seed in (2, 3)]
    kv, v = (draw(BATCH, heads, LENGTH, dim, seed=dim) for dim in DIMS)
    return kv, draw(192, seed=1), *tables, v


def documented(kv, gamma, cos, sin, v, epsilon=1e-5):
    """Return keys and values in float64, [B, N, S, D]."""
    kv, gamma, cos, sin = (t.double() for t in (kv, gamma, cos, sin))
    normed = kv / (kv.square().mean(-1, keepdim=True) + epsilon).sqrt() * gamma
    even, odd = normed[..., 0:64:2], normed[..., 1:64:2]
    turned = torch.cat((even, odd), -1) * cos + torch.cat((-odd, even), -1) * sin
    return torch.cat((turned, normed[..., 64:]), -1), v.double()


def call(given, heads, mode, *, dtypes=(torch.bfloat16, torch.bfloat16), version="_v2", **more):
    """Return the caches, as written, and the two other outputs. Sequence 1 goes first; its last token nowhere."""
    if mode == "Norm":
        shapes, index = [(BATCH, heads, 24, dim) for dim in DIMS], torch.arange(LENGTH).expand(BATCH, -1) + 3
    else:
        shapes, index = [(4, BLOCK, heads, dim) for dim in DIMS], torch.tensor([[32, 48], [0, 16]]).flatten()
        if "BLK" not in mode:
            index = torch.cat((torch.arange(LENGTH) + 32, torch.arange(LENGTH)))
    if "BLK" not in mode:
        index = index.contiguous()
        index.view(-1)[-1] = -1
    caches = [torch.full(shape, MARK, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    *tensors, v = given
    operator = getattr(torch.ops.npu, f"npu_kv_rmsnorm_rope_cache{version}")
    return caches, operator(*tensors, index, *caches, v=v, cache_mode=mode, **more)


def tokens_of(cache, heads, mode):
    """Return what a cache holds of every token and head that was to be written, and how often it holds the mark."""
    dim, width = cache.shape[-1], 32 // cache.element_size()
    if mode == "Norm":
        tokens = cache[:, :, 3 : 3 + LENGTH].movedim(1, 2)
    else:
        if "NZ" in mode:
            cache = (
                cache.view(4, heads, dim // width, BLOCK, width).permute(0, 3, 1, 2, 4).reshape(4, BLOCK, heads, dim)
            )
        rows = cache.reshape(4 * BLOCK, heads, dim)
        tokens = torch.stack((rows[32 : 32 + LENGTH], rows[:LENGTH]))
    return tokens.reshape(BATCH * LENGTH, heads, dim), int((cache == MARK).sum())


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("mode", MODES)
def test_caches_hold_keys_and_values(mode, heads):
    given = inputs(heads)
    caches, _ = call(given, heads, mode)
    for cache, expected in zip(caches, documented(*given), strict=True):
        stored, untouched = tokens_of(cache, heads, mode)
        count = BATCH * LENGTH - (0 if "BLK" in mode else 1)
        rows = expected.movedim(1, 2).reshape(BATCH * LENGTH, heads, -1)[:count]
        assert ((stored[:count] - rows).abs() <= rows.abs() * 2**-8 + 1e-6).all()
        assert untouched == cache.numel() - rows.numel()


def test_one_position_for_a_sequence():
    given = inputs(1, 1)
    caches, _ = call(given, 1, "PA")
    keys = documented(*given)[0].movedim(1, 2).reshape(BATCH * LENGTH, 1, 192)[:-1]
    assert ((tokens_of(caches[0], 1, "PA")[0][:-1] - keys).abs() <= keys.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", ["N, D", "D", "1"])
def test_int8_with_scales_and_offsets(mode, shape):
    given, heads = inputs(2), 2
    sizes = {"N, D": lambda dim: (heads, dim), "D": lambda dim: (dim,), "1": lambda _: (1,)}[shape]
    scales = [draw(*sizes(dim), seed=5, dtype=torch.float32) * 60 for dim in DIMS]
    offsets = [draw(*sizes(dim), seed=6, dtype=torch.float32) * 20 for dim in DIMS]
    more = {"k_rope_scale": scales[0], "c_kv_scale": scales[1], "k_rope_offset": offsets[0], "c_kv_offset": offsets[1]}
    caches, _ = call(given, heads, mode, dtypes=(torch.int8, torch.int8), **more)
    for cache, exact, scale, offset in zip(caches, documented(*given), scales, offsets, strict=True):
        rows = exact.movedim(1, 2).reshape(BATCH * LENGTH, heads, -1)
        expected = (rows * scale.double() + offset.double()).clamp(-128, 127)[:-1]
        assert ((tokens_of(cache, heads, mode)[0][:-1] - expected).abs() <= 0.5 + 1e-4).all()


def test_one_cache_is_quantised_alone():
    given = inputs(1)
    plain, _ = call(given, 1, "PA")
    caches, _ = call(given, 1, "PA", dtypes=(torch.bfloat16, torch.int8), c_kv_scale=torch.tensor([100.0]))
    assert torch.equal(caches[0], plain[0])
    assert caches[1].dtype == torch.int8
    assert not torch.equal(caches[1].float(), plain[1].float())


@pytest.mark.parametrize("version", ["", "_v2", "_v2_functional"])
def test_outputs(version):
    given = inputs(2)
    _, outputs = call(given, 2, "PA", version=version, is_output_kv=True)
    keys, values = {"": outputs[2:], "_v2": outputs, "_v2_functional": outputs[:2]}[version]
    expected = documented(*given)[0]
    assert ((keys - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all()
    assert torch.equal(values, given[-1])


def test_outputs_in_mode_norm_need_a_scale():
    given, more = inputs(1), {"dtypes": (torch.int8, torch.bfloat16), "k_rope_scale": torch.ones(192)}
    _, (_, values) = call(given, 1, "Norm", is_output_kv=True, **more)
    assert torch.equal(values, given[-1])
    _, (_, values) = call(given, 1, "Norm", is_output_kv=True)
    assert not torch.equal(values, given[-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(BATCH, 1, LENGTH, 576).bfloat16()}, r"kv was of shape .*; allowed: \[2, 1, 19, 192\]"),
        ({1: torch.zeros(512).bfloat16()}, r"gamma was of shape \[512\]; allowed: \[192\]"),
        ({2: torch.zeros(BATCH, 1, 2, 64).bfloat16()}, r"cos was .*; allowed: .* or \[2, 1, 1, 64\]"),
        ({4: torch.zeros(BATCH, 1, LENGTH + 1, 128).bfloat16()}, r"v was of shape \[2, 1, 20, 128\]; allowed"),
        ({4: torch.zeros(BATCH, 1, LENGTH, 128).half()}, "v "),
        # The host code takes it for a call without v.
        ({4: torch.zeros(BATCH, 1, LENGTH, 64).bfloat16()}, r"kv was of shape .*; allowed: \[2, 1, 19, 576\]"),
    ],
)
def test_refused_tensors(change, message):
    given = list(inputs(1))
    for place, tensor in change.items():
        given[place] = tensor
    with pytest.raises(OperatorRejected, match=message):
        call(given, 1, "PA")


def test_three_heads_are_refused():
    with pytest.raises(OperatorRejected, match="kv was of shape"):
        call(inputs(3), 3, "PA")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"k_rope_offset": torch.ones(192)}, "k_rope_offset was .*; allowed: None without k_rope_scale"),
        ({"c_kv_scale": torch.ones(512)}, r"c_kv_scale was of shape \[512\]; allowed"),
        ({"c_kv_scale": torch.ones(128).half()}, "c_kv_scale was float16"),
    ],
)
def test_refused_scales(more, message):
    with pytest.raises(OperatorRejected, match=message):
        call(inputs(1), 1, "PA", **more)
