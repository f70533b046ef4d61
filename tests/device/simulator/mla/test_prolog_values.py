"""What ``npu_mla_prolog`` computes, and where it rounds."""

import pytest
import torch

from npudiff.device.simulator import PROFILES, use_profile
from npudiff.device.simulator.norms.unwritten import unwritten

VERSIONS = ["", "_v2", "_v3", "_v3_functional"]


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("tokens", "index"), [((3,), [5, 0, 7]), ((2, 2), [[5, 0], [7, 2]])])
@pytest.mark.parametrize("mode", ["PA_BSND", "PA_NZ"])
def test_values_are_those_of_loops(mla, version, tokens, index, mode):
    given, both = mla.inputs(tokens), mla.caches()
    more = {"query_norm_flag": True} if "v3" in version else {}
    result = mla.call(given, index, both, version, cache_mode=mode, **more)
    wanted = mla.expected(given)
    slots = torch.tensor(index).flatten().tolist()
    assert result.query.shape == (*tokens, 2, 32)
    assert result.query_rope.shape == (*tokens, 2, 16)
    assert result.query.flatten(0, -3).tolist() == wanted.query
    assert result.query_rope.flatten(0, -3).tolist() == wanted.query_rope
    assert result.kv_cache.flatten().tolist() == mla.placed(both[0], wanted.latent, slots, nz=mode == "PA_NZ")
    assert result.kr_cache.flatten().tolist() == mla.placed(both[1], wanted.rope, slots, nz=mode == "PA_NZ")
    if more:
        assert result.query_norm.shape == (*tokens, 32)
        assert result.query_norm.flatten(0, -2).tolist() == wanted.query_norm
    assert {t.dtype for t in (result.query, result.query_rope, result.kv_cache)} == {torch.bfloat16}


@pytest.mark.usefixtures("free")
def test_other_sizes(mla):
    """Sizes that differ from each other, one head, three heads."""
    for sizes in ({"heads": 3, "hidden": 96, "rope": 32}, {"heads": 1, "nope": 48, "latent": 16, "rank": 80}):
        given = mla.inputs((2,), **sizes)
        shape = {name: size for name, size in sizes.items() if name in ("latent", "rope")}
        both = mla.caches(**shape)
        result = mla.call(given, [3, 4], both, "_v3")
        wanted = mla.expected(given)
        assert result.query.tolist() == wanted.query
        assert result.query_rope.tolist() == wanted.query_rope
        assert both[0].flatten().tolist() == mla.placed(both[0], wanted.latent, [3, 4])
        assert both[1].flatten().tolist() == mla.placed(both[1], wanted.rope, [3, 4])


@pytest.mark.parametrize("rounded", [True, False])
def test_products(mla, rounded):
    given = mla.inputs((4,))
    wanted, other = mla.expected(given, rounded=rounded), mla.expected(given, rounded=not rounded)
    both = mla.caches()
    with mla.changed(mla_products="rounded" if rounded else "float32"):
        result = mla.call(given, range(4), both)
    assert result.query.tolist() == wanted.query != other.query
    assert result.query_rope.tolist() == wanted.query_rope != other.query_rope
    assert both[0][0, :, 0].tolist() == wanted.latent != other.latent
    assert both[1][0, :, 0].tolist() == wanted.rope != other.rope
    assert PROFILES["8.5"].mla_products == "rounded"


@pytest.mark.usefixtures("free")
def test_each_norm_has_an_epsilon_of_its_own(mla):
    given = mla.inputs()
    default = mla.expected(given)
    for epsilons in ((4.0, 1e-5), (1e-5, 4.0)):
        both = mla.caches()
        named = dict(zip(("rmsnorm_epsilon_cq", "rmsnorm_epsilon_ckv"), epsilons, strict=True))
        result = mla.call(given, range(3), both, "_v2", **named)
        wanted = mla.expected(given, epsilons=epsilons)
        assert result.query.tolist() == wanted.query
        assert both[0][0, :3, 0].tolist() == wanted.latent
        assert (wanted.query != default.query) == (epsilons[0] == 4.0)
        assert (wanted.latent != default.latent) == (epsilons[1] == 4.0)


def test_the_scales_of_version_3(mla):
    """Not powers of two, which would commute with rounding."""
    given = mla.inputs()
    for choice in ("scaled", "unscaled"):
        for scales in ((1.4, 1.0), (1.0, 0.3)):
            both = mla.caches()
            options = {"qc_qr_scale": scales[0], "kc_scale": scales[1], "query_norm_flag": True}
            with mla.changed(mla_prolog_query_norm=choice):
                result = mla.call(given, range(3), both, "_v3", **options)
            wanted = mla.expected(given, scales=scales)
            assert result.query.tolist() == wanted.query
            assert result.query_rope.tolist() == wanted.query_rope
            assert both[0][0, :3, 0].tolist() == wanted.latent
            assert both[1][0, :3, 0].tolist() == wanted.rope
            unscaled = mla.expected(given).query_norm
            assert result.query_norm.tolist() == (wanted.query_norm if choice == "scaled" else unscaled)
            assert (wanted.query_norm != unscaled) == (scales[0] != 1.0)
    assert PROFILES["8.5"].mla_prolog_query_norm == "scaled"
    assert PROFILES["pessimistic"].mla_prolog_query_norm == "unscaled"


@pytest.mark.usefixtures("free")
def test_pairs_come_in_interleaved_and_go_out_in_half_order(mla):
    """A rope key (1, 2, 3, ...), by hand: cosine c and sine s make c - 2s of the first pair, and 2c + s."""
    given = mla.inputs((1,))
    given["token_x"].zero_()[0, 0] = 1
    given["weight_dkv_kr"].zero_()[0, 32:] = torch.arange(1, 17)
    given["rope_cos"].zero_()
    given["rope_sin"].zero_()
    given["rope_cos"][0, 0], given["rope_sin"][0, 0] = 3, 5
    given["rope_cos"][0, 8], given["rope_sin"][0, 8] = 7, 11
    given["rope_cos"][0, 7] = 1
    both = mla.caches()
    mla.call(given, [0], both)
    row = both[1][0, 0, 0].tolist()
    assert row[0] == 1 * 3 - 2 * 5
    assert row[8] == 2 * 7 + 1 * 11
    assert row[7] == 15
    assert [row[i] for i in range(16) if i not in (0, 7, 8)] == [0] * 13


@pytest.mark.usefixtures("free")
def test_the_latent_comes_before_the_rope_key_and_the_part_without_position_before_the_other(mla):
    given = mla.inputs((1,))
    without = {name: tensor.clone() for name, tensor in given.items()}
    without["weight_dkv_kr"][:, 32:] = 0
    without["weight_uq_qr"].view(32, 2, 32)[..., 16:] = 0
    full, latent_only = mla.caches(), mla.caches()
    one, other = mla.call(given, [0], full), mla.call(without, [0], latent_only)
    assert torch.equal(full[0], latent_only[0])
    assert torch.equal(one.query, other.query)
    assert not latent_only[1][0, 0].any()
    assert not other.query_rope.any()
    assert full[1][0, 0].any()
    assert one.query_rope.any()


@pytest.mark.usefixtures("free")
def test_a_token_does_not_depend_on_others(mla):
    given = mla.inputs((3,))
    expected, both = mla.call(given, range(3), mla.caches()), mla.caches()
    given["token_x"][1] = torch.nan
    result = mla.call(given, range(3), both)
    assert torch.equal(result.query[[0, 2]], expected.query[[0, 2]])
    assert result.query[1].isnan().all()
    assert torch.equal(both[0][0, [0, 2]], expected.kv_cache[0, [0, 2]])


@pytest.mark.parametrize(("choice", "shape"), [("empty", (0,)), ("one_zero", (1,))])
def test_outputs_that_a_call_has_not(mla, choice, shape):
    with mla.changed(mla_prolog_placeholders=choice):
        result = mla.call(mla.inputs(), range(3), mla.caches(), "_v3")
        flagged = mla.call(mla.inputs(), range(3), mla.caches(), "_v3", query_norm_flag=True)
        second = mla.call(mla.inputs(), range(3), mla.caches(), "_v2")
    for tensor, dtype in (
        (result.scale_nope, torch.float32),
        (result.query_norm, torch.bfloat16),
        (result.scale_norm, torch.float32),
        (flagged.scale_norm, torch.float32),
    ):
        assert (tensor.shape, tensor.dtype) == (shape, dtype)
        assert not tensor.any()
    # Version 2 has a [1] in any case, and does not say what is in it.
    assert torch.equal(second.scale_nope, unwritten((1,), torch.float32))
    assert PROFILES["8.5"].mla_prolog_placeholders == "empty"
    assert PROFILES["pessimistic"].mla_prolog_placeholders == "one_zero"


@pytest.mark.parametrize(
    ("version", "hidden", "choice"), [("", 7168, "documented"), ("_v3", 6144, "documented"), ("_v3", 1024, "newer")]
)
def test_real_sizes(mla, version, hidden, choice):
    """Against float64: five roundings are on the query's way, each at most 2**-8 of the chain over absolute values.

    They are of the first product, which counts twice, as its root is made of it too; of the norm, the second product
    and the end. The latent has the first and the last of them. Float32 is within the tenth that is added.
    """
    sizes = {"hidden": hidden, "rank": 1536, "heads": 2, "nope": 128, "latent": 512, "rope": 64}
    given = mla.inputs((2,), **sizes)
    both = mla.caches(2, 16, latent=512, rope=64)
    with use_profile("8.5") if choice == "documented" else mla.changed(mla_sizes=choice):
        result = mla.call(given, [17, 3], both, version)
    wide = {name: tensor.double() for name, tensor in given.items()}
    down = wide["token_x"] @ wide["weight_dq"]
    normalised = down / (down.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * wide["rmsnorm_gamma_cq"]
    query, twin = (
        torch.einsum("tnd,ndl->tnl", (a @ b).view(2, 2, 192)[..., :128], c)
        for a, b, c in (
            (normalised, wide["weight_uq_qr"], wide["weight_uk"]),
            (normalised.abs(), wide["weight_uq_qr"].abs(), wide["weight_uk"].abs()),
        )
    )
    assert ((result.query.double() - query).abs() <= 5.1 * 2.0**-8 * twin).all()
    kv = (wide["token_x"] @ wide["weight_dkv_kr"])[:, :512]
    latent = kv / (kv.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * wide["rmsnorm_gamma_ckv"]
    written = both[0].view(32, 512)[[17, 3]].double()
    assert ((written - latent).abs() <= 3.1 * 2.0**-8 * latent.abs()).all()
