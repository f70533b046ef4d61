"""``mla_preprocess`` of sgl-kernel-npu: what it computes and where it writes."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from npudiff.device.simulator import PROFILES, DeviceFault
from npudiff.device.simulator.norms.unwritten import unwritten

pytestmark = pytest.mark.usefixtures("free")


def in_tiles(cache, block_size=4):
    """See a cache [blocks, block size, 1, D] as [blocks, D / 16, block size, 16], as sglang does around the call."""
    return cache.view(len(cache), -1, block_size, 16)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("mode", [None, "krope_ctkv", "nzcache", "nzcache, axes of nd"])
def test_values_are_those_of_loops(mla, pre, seed, mode):
    given, plain = pre.inputs(seed=seed)
    slots = [5, 0, 7]
    given["slotmapping"] = torch.tensor(slots, dtype=torch.int32)
    both = given["kv_cache_out0"], given["kv_cache_out1"]
    nz = mode is not None and mode.startswith("nzcache")
    if nz and "axes" not in mode:
        given |= {f"kv_cache_out{number}": in_tiles(cache) for number, cache in enumerate(both)}
    if mode is not None:
        given["cache_mode"] = mode.split(",")[0]
    wanted = pre.expected(given, plain)
    returned = pre.call(given)
    assert given["q_out0"].tolist() == list(wanted.q_out0)
    assert given["q_out1"].tolist() == list(wanted.q_out1)
    assert both[0].flatten().tolist() == mla.placed(both[0], wanted.latent, slots, nz=nz)
    assert both[1].flatten().tolist() == mla.placed(both[1], wanted.rope, slots, nz=nz)
    assert [tensor.data_ptr() for tensor in returned] == [given[name].data_ptr() for name in pre.OUTPUTS]


@pytest.mark.parametrize("part", [slice(0, 32), slice(48, 80)], ids=["latent", "query"])
def test_the_norms_add_a_millionth(pre, part):
    """Dequantised values around 0.002, whose squares are of that size."""
    given, plain = pre.inputs()
    given["descale0"][part] *= 0.5**12
    wanted = pre.expected(given, plain)
    pre.call(given)
    assert given["q_out0"].tolist() == list(wanted.q_out0)
    assert given["kv_cache_out0"][0, :3, 0].tolist() == list(wanted.latent)


CHOICES = [
    ("mla_products", "float32", {"rounded": False}),
    ("mla_preprocess_int8", "half_away_from_zero", {"away": True}),
    ("mla_preprocess_norm", "rounded", {"norm_rounded": True}),
]


@pytest.mark.parametrize(("name", "choice", "how"), CHOICES)
def test_choices(mla, pre, name, choice, how):
    given, plain = pre.inputs(5)
    # Halves: x is a multiple of 1 / 16, the scale 1 / 8.
    given["quant_scale0"] = torch.tensor([0.125]).bfloat16()
    for changed in (False, True):
        wanted = pre.expected(given, plain, **how if changed else {})
        with mla.changed(**{name: choice} if changed else {}):
            pre.call(given)
        assert given["q_out0"].tolist() == list(wanted.q_out0)
        assert given["q_out1"].tolist() == list(wanted.q_out1)
        assert given["kv_cache_out0"][:, :, 0].flatten(0, 1)[:5].tolist() == list(wanted.latent)
    assert list(wanted.q_out0) != list(pre.expected(given, plain).q_out0)
    assert getattr(PROFILES["8.5"], name) != choice


def test_int8_saturates_and_nan_is_0(pre):
    """Hidden states of one token choose a column of an identity weight; the offset is in the sum."""
    given, _ = pre.inputs(5)
    weight = torch.zeros_like(given["wdqkv"])
    # Column 32 + j of the result is element j of what was quantised; cosine 1 and sine 0 leave it.
    for j in range(16):
        weight[0, 0, 32 + j, j] = 1
    given["wdqkv"], given["bias0"] = weight, torch.zeros_like(given["bias0"])
    given["descale0"] = torch.ones_like(given["descale0"])
    given["cos"], given["sin"] = torch.ones_like(given["cos"]), torch.zeros_like(given["sin"])
    given["quant_scale0"] = torch.tensor([0.5]).bfloat16()
    given["hiddenState"][:, 0] = torch.tensor([60.0, 61.0, -68.0, -1e30, torch.nan]).bfloat16()
    given["hiddenState"][:, 1] = torch.tensor([1e30, torch.inf, -torch.inf, 0.25, 0.75]).bfloat16()
    pre.call(given)
    rope = given["kv_cache_out1"].flatten(0, 1)[:5, 0]
    assert rope[:, 0].tolist() == [127, 127, -128, -128, 0]
    assert rope[:, 1].tolist() == [127, 127, -128, 8, 8]


def test_a_bias_wraps_in_int32(pre):
    given, plain = pre.inputs(1)
    given["bias0"] = torch.full_like(given["bias0"], 2**31 - 1)
    given["descale0"] = torch.full_like(given["descale0"], 0.5**30)
    pre.call(given)
    x = (given["hiddenState"].float() / given["quant_scale0"].float() + 7).half().round().clamp(-128, 127).long()
    sums = (x @ plain[0].long().t())[0, 32:48]
    wrapped = [(int(total) + 2**31 - 1 + 2**31) % 2**32 - 2**31 for total in sums]
    assert {value < 0 for value in wrapped} == {True, False}
    given["cos"], given["sin"] = torch.ones_like(given["cos"]), torch.zeros_like(given["sin"])
    pre.call(given)
    rope = given["kv_cache_out1"][0, 0, 0]
    assert rope.tolist() == [float(torch.tensor(value).float().mul(0.5**30).bfloat16()) for value in wrapped]


def test_inputs_that_are_not_used(pre):
    """gamma0 and beta0 belong to a norm that the operator has not; caches that are read are those of the outputs."""
    given, _ = pre.inputs()
    pre.call(given)
    expected = {name: given[name].clone() for name in pre.OUTPUTS}
    other, _ = pre.inputs()
    other["gamma0"] = other["beta0"] = torch.full((64,), torch.nan).bfloat16()
    other |= {name: torch.zeros(1) for name in ("ctkv_scale", "q_nope_scale")}
    other["kv_cache"], other["kv_cache_rope"] = (other[name].clone() for name in ("kv_cache", "kv_cache_rope"))
    # sglang gives a dummy of the hidden size for beta1.
    other["beta1"] = torch.cat([other["beta1"], torch.full((32,), torch.nan).bfloat16()])
    pre.call(other)
    assert all(torch.equal(other[name], expected[name]) for name in pre.OUTPUTS)
    assert all((other[name] == 9).all() for name in ("kv_cache", "kv_cache_rope"))


@pytest.mark.parametrize("mode", ["krope_ctkv", "nzcache"])
def test_slots(mla, pre, mode):
    given, plain = pre.inputs(4)
    given["cache_mode"] = mode
    wanted, nz = pre.expected(given, plain), mode == "nzcache"
    nobody = {dim: unwritten((dim,), torch.bfloat16).tolist() for dim in (32, 16)}
    for choice, rows in (("last_token", [2, 3]), ("unpredictable", [None, 3])):
        fresh, _ = pre.inputs(4)
        fresh |= {"cache_mode": mode, "slotmapping": torch.tensor([6, -1, 6, 1], dtype=torch.int32)}
        with mla.changed(mla_duplicate_slot=choice):
            pre.call(fresh)
        for cache, values, dim in (("kv_cache_out0", wanted.latent, 32), ("kv_cache_out1", wanted.rope, 16)):
            placed = [nobody[dim] if row is None else values[row] for row in rows]
            assert fresh[cache].flatten().tolist() == mla.placed(fresh[cache], placed, [6, 1], nz=nz)


@pytest.mark.parametrize(("slot", "choice"), [(8, "skipped"), (-1, "fault")])
def test_slots_outside_the_caches(mla, pre, slot, choice):
    given, _ = pre.inputs()
    given["slotmapping"] = torch.tensor([0, 1, slot], dtype=torch.int32)
    message = f"mla_preprocess: slotmapping of token 2 is {slot}, the caches have 8 slots"
    with mla.changed(mla_negative_slot=choice), pytest.raises(DeviceFault, match=message):
        pre.call(given)
    assert all((given[name] == 9).all() for name in pre.OUTPUTS)


@pytest.mark.parametrize("kind", ["meta", "fake"])
def test_shape_kernel(pre, kind):
    given, _ = pre.inputs()
    mode = FakeTensorMode()
    move = mode.from_tensor if kind == "fake" else lambda tensor: tensor.to("meta")
    moved = {name: move(value) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    with mode if kind == "fake" else torch.no_grad():
        inferred = pre.call(moved)
    eager = pre.call(given)
    assert [(t.shape, t.dtype) for t in inferred] == [(t.shape, t.dtype) for t in eager]
