"""Attention of ATB over sequences in one piece: values against float64, masks, and what is refused."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from npudiff.device.simulator import (
    PROFILES,
    DeviceFault,
    NotSimulated,
    OperatorRejected,
    UndefinedBehaviour,
    use_profile,
)

LENGTHS = (3, 0, 20, 1)
TOKENS = 26  # two behind the last sequence
DTYPES = (torch.bfloat16, torch.float16)
FORMS = ("", "_v3", "_unpad", "_unpad_v2")


def exactly():
    """Let kernels of the default precision have float32 scores, whose bound is the tighter one."""
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="exact", atb_float16_scores="float32"))


@pytest.fixture
def packed(atb):
    def make(*, dtype=torch.bfloat16, kv_heads=2, dim=32, value_dim=32, joined=False):
        call = {
            "query": atb.normal(TOKENS, 4, dim, dtype=dtype),
            "key": atb.normal(TOKENS, kv_heads, dim, dtype=dtype, seed=1),
            "value": atb.normal(TOKENS, kv_heads, value_dim, dtype=dtype, seed=2),
            "seq_len": atb.int32(LENGTHS),
            "scale_value": 0.17,
            "num_heads": 4,
            "num_kv_heads": kv_heads,
            "out": torch.full((TOKENS, 4, value_dim), 9.0, dtype=dtype),
        }
        if joined:
            call |= {name: call[name].flatten(1) for name in ("query", "key", "value", "out")}
        return call

    return make


def template(dtype):
    hiding = 1.0 if dtype == torch.bfloat16 else -math.inf
    return torch.zeros(128, 128, dtype=dtype).masked_fill(torch.ones(128, 128).triu(1).bool(), hiding)


def masked(form, dtype=torch.bfloat16):
    """Return the mask that a form needs to be causal."""
    if form == "":
        return {"mask": torch.full((20, 20), -10000.0).triu(1).to(dtype)}
    return {"mask": template(dtype)} if form == "_v3" else {}


def run(atb, form, call):
    assert getattr(atb.ops, f"_npu_flash_attention{form}")(**call) is None


def check(lab, call, *, causal, loss=None):
    start, dims = (
        0,
        {name: call[name].view(TOKENS, -1, call[name].shape[-1]) for name in ("query", "key", "value", "out")},
    )
    for size in LENGTHS:
        query, key, value, out = (tensor[start : start + size].transpose(0, 1) for tensor in dims.values())
        start += size
        if not size:
            continue
        visible = torch.ones(size, size, dtype=torch.bool)
        wanted, bound, _ = lab.exact(query, key, value, visible.tril() if causal else visible, scale=0.17)
        if loss is not None:
            spread = value.double().abs().amax(1, keepdim=True).repeat_interleave(len(query) // len(key), 0)
            bound = bound + loss(query, key, 0.17) * spread
        assert ((out.double() - wanted).abs() <= bound).all()
    assert (dims["out"][start:] == 9).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [{}, {"kv_heads": 4, "value_dim": 20}, {"kv_heads": 1, "dim": 48}], ids=str)
def test_each_sequence_attends_to_itself(lab, atb, packed, form, dtype, sizes):
    call = packed(dtype=dtype, **sizes) | masked(form, dtype)
    with exactly():
        run(atb, form, call)
    check(lab, call, causal="mask" in call)
    call["out"].fill_(9)
    run(atb, form, call)
    check(lab, call, causal="mask" in call, loss=atb.lost_in_halves if dtype == torch.float16 else None)


@pytest.mark.parametrize("form", FORMS)
def test_heads_and_dims_may_be_one_axis(atb, packed, form):
    call, joined = (packed(joined=one) | masked(form) for one in (False, True))
    run(atb, form, call)
    run(atb, form, joined)
    assert torch.equal(joined["out"], call["out"].flatten(1))


def test_float16_scores_round_where_the_kernel_of_default_precision_does(atb, packed):
    """One key whose score lies between two float16 numbers: 2049 becomes 2048, and so the weight of the other one."""
    query, key = torch.zeros(2, 1, 16).half(), torch.zeros(2, 1, 16).half()
    query[:, 0, :2], key[0, 0, 0], key[1, 0, :2] = (
        torch.tensor([64.0, 1.0]).half(),
        32,
        torch.tensor([32.0, 1.0]).half(),
    )
    value = torch.tensor([0.0, 1.0]).half().view(2, 1, 1).expand(2, 1, 16).contiguous()
    out = torch.empty_like(value)
    call = (query, key, value, atb.int32([2]), 1.0, 1, 1, out)
    atb.ops._npu_flash_attention_unpad(*call)
    assert (out == 0.5).all()
    with exactly():
        atb.ops._npu_flash_attention_unpad(*call)
    assert torch.allclose(out.float(), torch.tensor(1 / (1 + math.exp(-1))), atol=2**-11)


def test_a_mask_may_be_one_for_each_sequence(atb, packed):
    call = packed() | {"mask": torch.zeros(4, 20, 20).bfloat16()}
    call["mask"][0, :, 1] = -10000
    run(atb, "", call)
    alone = packed() | {"mask": call["mask"][0], "seq_len": atb.int32([3]), "out": torch.empty_like(call["out"])}
    run(atb, "", alone)
    assert torch.equal(call["out"][:3], alone["out"][:3])
    free = packed()
    run(atb, "_unpad", free)
    assert torch.equal(call["out"][3:], free["out"][3:])
    assert not torch.equal(call["out"][:3], free["out"][:3])


REFUSED = {
    "num_heads": [0, 3],
    "num_kv_heads": [-1, 3],
    "query": [torch.zeros(TOKENS, 4, 32), torch.zeros(TOKENS, 4, 16).bfloat16(), torch.zeros(TOKENS, 128).bfloat16()],
    "key": [torch.zeros(TOKENS, 2, 32), torch.zeros(TOKENS - 1, 2, 32).bfloat16()],
    "value": [torch.zeros(TOKENS, 4, 32).bfloat16(), torch.zeros(0, 2, 32).bfloat16()],
    "seq_len": [torch.ones(4, dtype=torch.int64), torch.tensor([-1]).int()],
    "out": [torch.zeros(TOKENS, 4, 32), torch.zeros(TOKENS, 128).bfloat16(), torch.zeros(TOKENS, 32, 4).bfloat16().mT],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("name", "given"), [(name, given) for name, values in REFUSED.items() for given in values])
def test_what_atb_refuses(atb, packed, form, name, given):
    with pytest.raises(OperatorRejected):
        run(atb, form, packed() | masked(form) | {name: given})


@pytest.mark.parametrize(
    ("dim", "value_dim", "taken"), [(576, 576, True), (592, 592, False), (592, 16, True), (16, 1040, False)]
)
def test_head_dims(atb, packed, dim, value_dim, taken):
    call = packed(dim=dim, value_dim=value_dim)
    if taken:
        run(atb, "_unpad", call)
    else:
        with pytest.raises(OperatorRejected, match="head dim"):
            run(atb, "_unpad", call)


@pytest.mark.parametrize("form", FORMS)
def test_lengths_beyond_the_tokens_are_faults_and_two_rows_of_them_not_simulated(atb, packed, form):
    call = packed() | masked(form)
    with pytest.raises(DeviceFault, match="seq_len has 27 tokens, and query 26"):
        run(atb, form, call | {"seq_len": atb.int32([7, 20])})
    with pytest.raises(NotSimulated, match="one length for queries and keys"):
        run(atb, form, call | {"seq_len": atb.int32([LENGTHS, LENGTHS])})


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.zeros(20, 20), OperatorRejected), (torch.zeros(20, 19).bfloat16(), OperatorRejected),
        (torch.zeros(3, 20, 20).bfloat16(), OperatorRejected), (torch.zeros(20).bfloat16(), OperatorRejected),
        (torch.zeros(4, 1, 20, 20).bfloat16(), NotSimulated),
    ],
)  # fmt: skip
def test_masks_that_do_not_fit(atb, packed, mask, error):
    with pytest.raises(error, match="mask"):
        run(atb, "", packed() | {"mask": mask})


def test_kinds_of_masks_and_kernels(atb, packed):
    call = packed() | masked("_v3")
    run(atb, "_v3", call | {"mask_type": None})
    with pytest.raises(OperatorRejected, match="mask_type only supports MASK_TYPE_NORM_COMPRESS, but got: 1"):
        run(atb, "_v3", call | {"mask_type": 1})
    with pytest.raises(UndefinedBehaviour, match="above the diagonal"):
        run(atb, "_v3", call | {"mask": call["mask"].T.contiguous()})
    run(atb, "_unpad_v2", packed() | {"kernel_type": None})
    with pytest.raises(NotSimulated, match="kernel_type was 2"):
        run(atb, "_unpad_v2", packed() | {"kernel_type": 2})
    words = r"kernel_type only supports KERNELTYPE_DEFAULT\(0\) and KERNELTYPE_EXP_M8V2\(2\), but got: 1"
    with pytest.raises(OperatorRejected, match=words):
        run(atb, "_unpad_v2", packed() | {"kernel_type": 1})
