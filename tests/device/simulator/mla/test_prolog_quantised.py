"""``npu_mla_prolog`` with int8, against its documented formulas in float64.

The int8 of a stage may be off by one where float32 and float64 round differently, so each stage is judged with what the
operator gave for the one before: query_norm and its scale, which version 3 returns.
"""

from types import SimpleNamespace

import pytest
import torch

from npudiff.device.simulator import OperatorRejected
from npudiff.device.simulator.mla import quantised
from npudiff.device.simulator.norms.unwritten import unwritten

HIDDEN, RANK, HEADS, NOPE, LATENT, ROPE, TILE = 64, 32, 2, 16, 64, 32, 32
TOKENS = 5
SLOTS = [7, 0, 3, 9, 4]
BFLOAT16 = 2.0**-8

# weight_quant_mode and kv_cache_quant_mode.
SCENES = {
    "query": (1, 0),
    "query, channel": (1, 2),
    "query, tile": (1, 3),
    "all": (2, 0),
    "all, tensor": (2, 1),
    "all, tile": (2, 3),
}
OF_VERSION = {
    "": ["query", "query, channel"],
    "_v2": ["query", "query, channel", "all", "all, tensor"],
    "_v3": list(SCENES),
    "_v3_functional": list(SCENES),
}
CALLS = [(version, scene) for version, scenes in OF_VERSION.items() for scene in scenes]


def modes(scene):
    weights, cache = SCENES[scene]
    tile = int(cache == 3)
    return {
        "weight_quant_mode": weights,
        "kv_cache_quant_mode": cache,
        "query_quant_mode": int(cache == 1),
        "ckvkr_repo_mode": tile,
        "quant_scale_repo_mode": tile,
        **({"tile_size": TILE} if tile else {}),
    }


class Case:
    """Tensors, scales and caches of a scene."""

    def __init__(self, mla, version, scene, *, tokens=(TOKENS,), smooth=True, seed=0):
        self.version, self.scene, self.mla, self.tokens = version, scene, mla, tokens
        weights, self.cache = SCENES[scene]
        self.full = weights == 2
        self.given = mla.inputs(
            tokens, hidden=HIDDEN, rank=RANK, heads=HEADS, nope=NOPE, latent=LATENT, rope=ROPE, seed=seed
        )
        generator = torch.Generator().manual_seed(seed + 1)

        def int8(like):
            return torch.randint(-100, 101, like.shape, generator=generator, dtype=torch.int8)

        def scales(*shape, low=0.01):
            return torch.rand(shape, generator=generator) * low + low

        for name in ("token_x", "weight_dq", "weight_dkv_kr") if self.full else ():
            self.given[name] = int8(self.given[name])
        self.given["weight_uq_qr"] = int8(self.given["weight_uq_qr"])
        up, count = HEADS * (NOPE + ROPE), torch.Size(tokens).numel()
        self.scales = {"dequant_scale_w_uq_qr": scales(1, up)}
        if smooth:
            self.scales["smooth_scales_cq"] = scales(1, RANK, low=0.5)
        if self.full:
            self.scales["dequant_scale_x"] = scales(count, 1)
            self.scales["dequant_scale_w_dq"] = scales(1, RANK)
            self.scales["dequant_scale_w_dkv_kr"] = scales(1, LATENT + ROPE)
        if self.cache == 1:
            self.scales["quant_scale_ckv"] = torch.tensor([31.7]) if "v3" in version else torch.full((1, LATENT), 31.7)
        elif self.cache == 2:
            self.scales |= {
                "quant_scale_ckv": scales(1, LATENT, low=20.0),
                "quant_scale_ckr": scales(1, ROPE, low=30.0),
            }
        elif self.cache == 3:
            self.scales["k_nope_clip_alpha"] = torch.tensor([0.75])
        row = LATENT + 2 * ROPE + 4 * (LATENT // TILE) if self.cache == 3 else LATENT
        self.caches = [
            torch.full((3, 4, 1, row), mla.MARK, dtype=torch.int8 if self.cache else torch.bfloat16),
            torch.full((3, 4, 1, ROPE), mla.MARK, dtype=torch.int8 if self.cache == 2 else torch.bfloat16),
        ]

    def call(self, **options):
        v3 = modes(self.scene) | {"query_norm_flag": True} if "v3" in self.version else {}
        index = torch.tensor(SLOTS).view(self.tokens)
        return self.mla.call(self.given, index, self.caches, self.version, **self.scales | v3 | options)

    def double(self, name):
        return self.given[name].double()

    def dequantised(self, product, rows, columns):
        return product * rows.double() * self.scales[columns].double()

    def down(self, weight, columns):
        """The products that lower a token: exact behind their scales, else of bfloat16 and rounded."""
        product = self.double("token_x").flatten(0, -2) @ self.double(weight)
        if self.full:
            return self.dequantised(product, self.scales["dequant_scale_x"], columns)
        return product.bfloat16().double()

    def expected(self, norm=None, norm_scale=None, factor=1.0, kc_scale=1.0):
        """Values in float64; ``norm`` and ``norm_scale`` are what the operator gave for the query latent."""
        down = self.down("weight_dq", "dequant_scale_w_dq")
        latent_query = rms(down) * self.double("rmsnorm_gamma_cq") * factor
        smooth = self.scales.get("smooth_scales_cq", torch.ones(1, 1)).double()
        found = SimpleNamespace(smoothed=latent_query * smooth)
        if norm is None:
            scale = found.smoothed.abs().amax(-1, keepdim=True) / 127
            norm, norm_scale = (found.smoothed / scale).round(), scale
        up = self.dequantised(norm.double() @ self.double("weight_uq_qr"), norm_scale, "dequant_scale_w_uq_qr")
        up = up.view(-1, HEADS, NOPE + ROPE)
        found.query = torch.einsum("tnd,ndl->tnl", up[..., :NOPE].bfloat16().double(), self.double("weight_uk"))
        found.size = torch.einsum("tnd,ndl->tnl", up[..., :NOPE].abs(), self.double("weight_uk").abs())
        found.rope = self.turned(up[..., NOPE:], heads=True)
        keys = self.down("weight_dkv_kr", "dequant_scale_w_dkv_kr")
        found.latent = rms(keys[:, :LATENT]) * self.double("rmsnorm_gamma_ckv") * kc_scale
        found.key_rope = self.turned(keys[:, LATENT:], heads=False)
        return found

    def turned(self, values, *, heads):
        cos, sin = (self.double(name).view(-1, 1, ROPE) if heads else self.double(name).flatten(0, -2)
                    for name in ("rope_cos", "rope_sin"))  # fmt: skip
        even, odd = values[..., ::2], values[..., 1::2]
        return torch.cat([even, odd], -1) * cos + torch.cat([-odd, even], -1) * sin


def rms(values):
    return values / (values.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def rows_of(cache):
    return cache.flatten(0, 1)[SLOTS, 0]


def near(found, expected, size=None):
    """Within half a unit of bfloat16, and float32 sums of ``size``."""
    size = expected.abs() if size is None else size
    return ((found.double() - expected).abs() <= expected.abs() * BFLOAT16 + size * BFLOAT16 * 1.01 + 1e-6).all()


def within_one(found, expected):
    assert found.dtype == torch.int8
    return ((found.double() - expected.clamp(-128, 127).round()).abs() <= 1).all()


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("version", "scene"), CALLS)
def test_the_query(mla, version, scene, smooth):
    case = Case(mla, version, scene, smooth=smooth)
    result = case.call()
    v3 = "v3" in version
    if v3:
        assert result.query_norm.dtype == torch.int8
        assert result.query_norm.shape == (TOKENS, RANK)
        assert result.scale_norm.shape == (TOKENS, 1)
        wanted = case.expected(result.query_norm, result.scale_norm)
        assert within_one(result.query_norm, wanted.smoothed / result.scale_norm)
        largest = wanted.smoothed.abs().amax(-1, keepdim=True)
        torch.testing.assert_close(result.scale_norm.double(), largest / 127, rtol=1e-5, atol=0)
        assert (result.query_norm.int().abs().amax(-1) == 127).all()
    else:
        wanted = case.expected()
    slack = 1 if v3 else 3  # without query_norm one int8 of each of 32 may be another
    if case.cache == 1:
        scale = wanted.query.abs().amax(-1, keepdim=True) / 127
        assert result.scale_nope.shape == (TOKENS, HEADS, 1)
        torch.testing.assert_close(result.scale_nope.double(), scale, rtol=slack * BFLOAT16, atol=0)
        found = result.query.double() * result.scale_nope
        allowed = result.scale_nope.double() * slack + wanted.size * BFLOAT16 * slack
        assert result.query.dtype == torch.int8
        assert ((found - wanted.query).abs() <= allowed).all()
        rope = wanted.rope.bfloat16().double() * 31.7 / result.scale_nope.double()
        assert near(result.query_rope, rope, rope.abs() * slack + (0 if v3 else 20))
    else:
        assert result.query.dtype == torch.bfloat16
        assert near(result.query, wanted.query, wanted.size * slack)
        assert near(result.query_rope, wanted.rope, 0.0 if v3 else wanted.rope.abs().amax() * 2)
        if version == "_v2":
            assert torch.equal(result.scale_nope, unwritten((1,), torch.float32))
        if v3:
            assert result.scale_nope.shape == (0,)
    assert result.query.shape == (TOKENS, HEADS, LATENT)
    assert result.query_rope.shape == (TOKENS, HEADS, ROPE)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("tokens", [(TOKENS,), (TOKENS, 1)])
@pytest.mark.parametrize(("version", "scene"), CALLS)
def test_the_caches(mla, version, scene, tokens):
    case = Case(mla, version, scene, tokens=tokens)
    result, wanted = case.call(), case.expected()
    latent, rope = rows_of(result.kv_cache), rows_of(result.kr_cache)
    if case.cache == 0:
        assert near(latent, wanted.latent)
    elif case.cache == 1:
        assert within_one(latent, wanted.latent * 31.7)
    elif case.cache == 2:
        assert within_one(latent, wanted.latent * case.scales["quant_scale_ckv"])
        assert within_one(rope, wanted.key_rope.bfloat16() * case.scales["quant_scale_ckr"])
    else:
        packed, turned, scales = latent.split([LATENT, 2 * ROPE, 4 * (LATENT // TILE)], -1)
        tiles = wanted.latent.view(TOKENS, -1, TILE)
        limit = tiles.abs().amax(-1, keepdim=True) * 0.75
        scales = scales.contiguous().view(torch.float32)
        torch.testing.assert_close(scales.double(), limit.squeeze(-1) / 127, rtol=1e-5, atol=0)
        cut = tiles.clamp(-limit, limit) / scales.double().unsqueeze(-1)
        assert within_one(packed, cut.flatten(1))
        assert (packed.view(TOKENS, -1, TILE).int().abs().amax(-1) == 127).all()
        rope = turned.contiguous().view(torch.bfloat16)
        assert (result.kr_cache == mla.MARK).all()
    if case.cache != 2:
        assert near(rope, wanted.key_rope, wanted.key_rope.abs())
    others = [slot for slot in range(12) if slot not in SLOTS]
    for cache in case.caches if version != "_v3_functional" else (result.kv_cache, result.kr_cache):
        assert (cache.flatten(0, 1)[others] == mla.MARK).all()


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize(
    ("version", "scene"), [call for call in CALLS if "tile" not in call[1] and call[0] != "_v3_functional"]
)
def test_nz_caches_have_tiles_of_32_bytes(mla, version, scene):
    flat, tiled = Case(mla, version, scene), Case(mla, version, scene)
    flat.call()
    tiled.call(cache_mode="PA_NZ")
    for one, other in zip(flat.caches, tiled.caches, strict=True):
        width = 32 // one.element_size()
        in_order = other.view(3, one.shape[-1] // width, 4, width).transpose(1, 2).reshape(one.shape)
        assert torch.equal(in_order, one)


@pytest.mark.usefixtures("free")
def test_the_scales_of_version_3_come_before_int8(mla):
    """1.4 of the query latent changes its scale and no int8; 0.3 of the latent changes the int8 of the cache."""
    plain, scaled = Case(mla, "_v3", "all, tensor"), Case(mla, "_v3", "all, tensor")
    one, other = plain.call(), scaled.call(qc_qr_scale=1.4, kc_scale=0.3)
    assert within_one(other.query_norm, one.query_norm.double())
    torch.testing.assert_close(other.scale_norm, one.scale_norm * 1.4)
    assert within_one(rows_of(scaled.caches[0]), scaled.expected(kc_scale=0.3).latent * 31.7)
    assert not torch.equal(scaled.caches[0], plain.caches[0])


@pytest.mark.usefixtures("free")
def test_a_token_of_zeros(mla):
    case = Case(mla, "_v3", "all, tensor")
    case.given["token_x"][2] = 0
    result = case.call()
    assert not result.query[2].any()
    assert not result.query_norm[2].any()
    assert result.scale_norm[2] == 0
    assert not rows_of(case.caches[0])[2].any()


@pytest.mark.usefixtures("free")
def test_shapes_without_data(mla):
    for version, scene in CALLS:
        for tokens in ((TOKENS,), (TOKENS, 1)):
            case = Case(mla, version, scene, tokens=tokens)
            eager = case.call().tuple
            case.given = {name: one.to("meta") for name, one in case.given.items()}
            case.scales = {name: one.to("meta") for name, one in case.scales.items()}
            case.caches = [cache.to("meta") for cache in case.caches]
            inferred = case.call().tuple
            assert [(one.shape, one.dtype) for one in inferred] == [(one.shape, one.dtype) for one in eager]


REFUSED = [
    ("all", {"dequant_scale_x": None}, r"dequant_scale_x was None; allowed: float32 \[5, 1\]"),
    ("all", {"dequant_scale_x": torch.ones(1, 5)}, r"dequant_scale_x was of shape \[1, 5\]; allowed: \[5, 1\]"),
    ("all", {"dequant_scale_w_dq": torch.ones(1, 32).half()}, "dequant_scale_w_dq was float16; allowed: float32"),
    ("all", {"dequant_scale_w_dkv_kr": None}, "dequant_scale_w_dkv_kr was None"),
    ("query", {"dequant_scale_w_uq_qr": None}, "dequant_scale_w_uq_qr was None"),
    ("query", {"dequant_scale_w_uq_qr": torch.ones(96)}, r"dequant_scale_w_uq_qr was of shape \[96\]"),
    ("query", {"smooth_scales_cq": torch.ones(32)}, r"smooth_scales_cq was of shape \[32\]; allowed: \[1, 32\]"),
    ("query", {"dequant_scale_x": torch.ones(5, 1)}, r"dequant_scale_x was float32 \[5, 1\]; allowed: None with what"),
    ("query", {"quant_scale_ckv": torch.ones(1, 64)}, "quant_scale_ckv was float32"),
    ("query, channel", {"quant_scale_ckr": None}, "quant_scale_ckr was None"),
    ("all, tensor", {"quant_scale_ckv": None}, "quant_scale_ckv was None"),
    ("all, tensor", {"quant_scale_ckr": torch.ones(1, 32)}, "quant_scale_ckr was float32"),
]


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", ["_v2", "_v3"])
@pytest.mark.parametrize(("scene", "change", "message"), REFUSED)
def test_scales_belong_to_a_scene(mla, version, scene, change, message):
    case = Case(mla, version, scene)
    case.scales = {name: one for name, one in (case.scales | change).items() if one is not None}
    with pytest.raises(OperatorRejected, match=f"npu_mla_prolog{version}: {message}"):
        case.call()


V3_REFUSED = [
    ("all", {"weight_quant_mode": 1}, "token_x was int8; allowed: bfloat16"),
    ("query", {"weight_quant_mode": 2}, "token_x was bfloat16; allowed: int8"),
    ("query", {"weight_quant_mode": 0}, "weight_uq_qr was int8; allowed: bfloat16"),
    ("all", {"kv_cache_quant_mode": 2}, "kv_cache_quant_mode was 2; allowed: 0 or 1 or 3 with weight_quant_mode 2"),
    ("query", {"kv_cache_quant_mode": 1}, "kv_cache_quant_mode was 1; allowed: 0 or 2 or 3 with weight_quant_mode 1"),
    ("all, tensor", {"query_quant_mode": 0}, "query_quant_mode was 0; allowed: 1 with kv_cache_quant_mode 1"),
    ("all", {"query_quant_mode": 1}, "query_quant_mode was 1; allowed: 0 with kv_cache_quant_mode 0"),
    ("all, tile", {"ckvkr_repo_mode": 0}, "ckvkr_repo_mode was 0; allowed: 1 with kv_cache_quant_mode 3"),
    ("all, tile", {"quant_scale_repo_mode": 0}, "quant_scale_repo_mode was 0; allowed: 1"),
    ("all", {"ckvkr_repo_mode": 1}, "ckvkr_repo_mode was 1; allowed: 0 with kv_cache_quant_mode 0"),
    ("all, tile", {"k_nope_clip_alpha": None}, "k_nope_clip_alpha was None"),
    ("all, tile", {"tile_size": 64, "kv_cache": 132}, None),
    ("all, tile", {"tile_size": 16, "kv_cache": 144}, "tile_size was 16; allowed: 64 or 32"),
    ("all, tile", {"tile_size": 16}, r"kv_cache was of shape \[3, 4, 1, 136\]; allowed: \[3, 4, 1, 144\], .*Dtile"),
    ("all, tile", {"cache_mode": "PA_NZ"}, "cache_mode was 'PA_NZ'; allowed: 'PA_BSND'"),
]


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", ["_v3", "_v3_functional"])
@pytest.mark.parametrize(("scene", "change", "message"), V3_REFUSED)
def test_modes_of_version_3(mla, version, scene, change, message):
    case = Case(mla, version, scene)
    change = dict(change)
    if "kv_cache" in change:
        case.caches[0] = torch.zeros(3, 4, 1, change.pop("kv_cache"), dtype=torch.int8)
    if message is None:
        case.call(**change)
        return
    with pytest.raises(OperatorRejected, match=f"npu_mla_prolog{version}: {message}"):
        case.call(**change)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", ["", "_v2"])
def test_dtypes_say_what_is_quantised(mla, version):
    case = Case(mla, version, "query")
    case.given["weight_dq"] = case.given["weight_dq"].to(torch.int8)
    with pytest.raises(OperatorRejected, match="weight_dq was int8; allowed: bfloat16"):
        case.call()
    case = Case(mla, version, "query")
    case.given["token_x"] = case.given["token_x"].to(torch.int8)
    refused = "weight_dq was bfloat16; allowed: int8" if version else "token_x was int8; allowed: bfloat16"
    with pytest.raises(OperatorRejected, match=refused):
        case.call()
    plain = mla.inputs(latent=32)
    caches = [cache.to(torch.int8) for cache in mla.caches()]
    with pytest.raises(OperatorRejected, match="kv_cache was int8; allowed: bfloat16 with bfloat16 weights"):
        mla.call(plain, range(3), caches, version)


def test_rows_are_multiplied_by_the_reciprocal_and_rounded_half_to_even():
    values, scale = quantised.per_row(torch.tensor([[127.0, 0.5, 1.5, -2.5], [3.0, 1.0, 0.0, -3.0]]))
    assert values.tolist() == [[127, 0, 2, -2], [127, 42, 0, -127]]
    assert scale.tolist() == [[1.0], [torch.tensor(3.0).div(127).item()]]


def test_heads_are_rounded_by_way_of_float16_half_away_from_zero():
    """64.49 is 64.5 in float16, which has steps of 1/16 there: the second rounding then goes up."""
    query = torch.tensor([[[127.0, 0.5, 64.5, -2.5]]]).bfloat16()
    assert quantised.per_head(query)[0].tolist() == [[[127, 1, 65, -3]]]
    big = torch.tensor([[[127.0 * 2, 128.97]]])
    assert quantised.per_head(big)[0].tolist() == [[[127, 65]]]


def test_tiles_are_cut_before_they_are_rounded():
    values, scales = quantised.per_tile(torch.tensor([[4.0, -1.0, 0.5, 8.0]]), 2, 0.5)
    assert values.tolist() == [[127, -64, 16, 127]]
    torch.testing.assert_close(scales, torch.tensor([[2.0, 4.0]]) / 127)


def test_sums_of_int8_are_exact():
    x = torch.full((1, 7168), -128, dtype=torch.int8)
    weight = torch.full((7168, 2), -128, dtype=torch.int8)
    weight[0, 1] = -127
    found = quantised.int8_product(x, weight, torch.ones(1, 1), torch.ones(1, 2))
    assert found.tolist() == [[float(2**14 * 7168), float(2**14 * 7168 - 128)]]
