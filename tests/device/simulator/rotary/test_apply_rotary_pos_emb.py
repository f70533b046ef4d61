"""``npu_apply_rotary_pos_emb``: it writes what it is given, whatever its schema says."""

import dataclasses

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, use_profile


def apply(query, key, cos, sin, *arguments):
    return torch.ops.npu.npu_apply_rotary_pos_emb(query, key, cos, sin, *arguments)


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(tokens=(2, 3), heads=(4, 2), dim=64, rotary_dim=64, dtype=torch.float32):
    query, key = (draw(*tokens, n, dim, dtype=dtype, seed=s) for s, n in enumerate(heads))
    return query, key, *(draw(*tokens, 1, rotary_dim, dtype=dtype, seed=s).clamp(-1, 1) for s in (2, 3))


def exact(x, cos, sin):
    x, cos, sin = x.double().clone(), cos.double(), sin.double()
    before, half = x.clone(), cos.shape[-1] // 2
    for i in range(half):
        x[..., i] = before[..., i] * cos[..., i] - before[..., i + half] * sin[..., i]
        x[..., i + half] = before[..., i + half] * cos[..., i + half] + before[..., i] * sin[..., i + half]
    return x


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("dim", "rotary_dim"), [(64, 64), (128, 128), (128, 64)])
@pytest.mark.parametrize(("layout", "tokens"), [("BSND", (2, 3)), ("TND", (5,))])
def test_query_and_key_are_written_and_returned(dtype, dim, rotary_dim, layout, tokens):
    query, key, cos, sin = inputs(tokens, dim=dim, rotary_dim=rotary_dim, dtype=dtype)
    expected = [exact(x, cos, sin) for x in (query, key)]
    before = [x.clone() for x in (query, key)]
    outputs = apply(query, key, cos, sin, layout)
    for output, given, old, value in zip(outputs, (query, key), before, expected, strict=True):
        assert output.data_ptr() == given.data_ptr()
        assert output.shape == given.shape
        # Products round in float16 alone; |x| is below 5 and cosines are at most 1.
        bound = torch.finfo(dtype).eps * (value.abs() + (5 if dtype == torch.float16 else 0)) + 1e-6
        assert ((given - value).abs() <= bound).all()
        assert torch.equal(given[..., rotary_dim:], old[..., rotary_dim:])


def test_a_quarter_turn_by_hand():
    query = torch.arange(64.0).view(1, 1, 1, 64)
    key = query + 100
    apply(query, key, torch.zeros_like(query), torch.ones_like(query))
    assert query.flatten().tolist() == [*(-float(i) for i in range(32, 64)), *range(32)]
    assert key.flatten().tolist() == [*(-float(i) for i in range(132, 164)), *range(100, 132)]


def test_slices_of_one_projection_are_written_in_place():
    packed = draw(1, 3, 6, 64)
    before = packed.clone()
    query, key, value = packed.split([4, 1, 1], 2)
    _, _, cos, sin = inputs((1, 3))
    apply(query, key, cos, sin)
    assert torch.allclose(packed[:, :, :5].double(), exact(before[:, :, :5], cos, sin), atol=1e-5)
    assert torch.equal(packed[:, :, 5:], before[:, :, 5:])
    assert value.data_ptr() == packed[:, :, 5:].data_ptr()


def one_pair(first, second, cos, sin, dtype):
    query, cosines, sines = (torch.zeros(1, 1, 1, 64, dtype=dtype) for _ in range(3))
    query[..., 0], query[..., 32], cosines[..., 0], sines[..., 0] = first, second, cos, sin
    return apply(query, query.clone(), cosines, sines)[0][..., 0].item()


def test_float16_rounds_both_products():
    step = 2.0**-10
    assert one_pair(1 + step, 1 + 2 * step, 1 + step, 1, torch.float16) == 0


def test_bfloat16_rounds_once_halves_away_from_zero():
    step = 2.0**-7
    assert one_pair(1 + step, 1 + 2 * step, 1 + step, 1, torch.bfloat16) == step**2
    assert one_pair(1, -step / 2, 1, 1, torch.bfloat16) == 1 + step
    assert one_pair(-1, step / 2, 1, 1, torch.bfloat16) == -1 - step
    with changed(apply_rotary_bfloat16="half_to_even"):
        assert one_pair(1, -step / 2, 1, 1, torch.bfloat16) == 1
        assert one_pair(1 + step, -step / 2, 1, 1, torch.bfloat16) == 1 + 2 * step


def test_bfloat16_keeps_special_values():
    for value in (float("inf"), 3.38e38, 1e-40):
        assert one_pair(value, 0, 1, 0, torch.bfloat16) == torch.tensor(value).bfloat16().item()
    assert torch.tensor(one_pair(float("nan"), 0, 1, 0, torch.bfloat16)).isnan()


def test_an_unknown_layout_counts_as_bsnd():
    query, key, cos, sin = inputs()
    expected = exact(query, cos, sin)
    apply(query, key, cos, sin, "BSH")
    assert torch.allclose(query.double(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("BNSD",), "layout was 'BNSD', which is for Ascend 950; allowed: 'BSND' or 'TND'"),
        (("SBND",), "layout was 'SBND'"),
        (("TND",), r"query was of rank 4, \[2, 3, 4, 64\]; allowed: rank 3"),
        (("BSND", "interleave"), r"rotary_mode was 'interleave', which is for Ascend 950; allowed: 'half' \[aclnn"),
        (("BSND", "quarter"), "rotary_mode was 'quarter'"),
        (("BSND", "neox"), r"rotary_mode was 'neox'; allowed: 'half' \[ERR01003\]"),
    ],
)
def test_rejected_names(arguments, message):
    query, key, cos, sin = inputs()
    before = query.clone()
    with pytest.raises(OperatorRejected, match=message):
        apply(query, key, cos, sin, *arguments)
    assert torch.equal(query, before)


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (0, lambda t: t.double(), "query was float64; allowed: float16 or bfloat16 or float32"),
        (1, lambda t: t.half(), "key was float16; allowed: float32, as query"),
        (2, lambda t: t.half(), "cos was float16; allowed: float32, as query"),
        (3, lambda t: t.bfloat16(), "sin was bfloat16; allowed: float32, as query"),
        (1, lambda t: t[0], r"key was of rank 3, \[3, 2, 64\]; allowed: rank 4"),
        (1, lambda t: t[:, :2], r"key was of shape \[2, 2, 2, 64\]; allowed: \[2, 3, 2, 64\], the tokens and head"),
        (2, lambda t: t[:1], r"cos was of shape \[1, 3, 1, 64\]; allowed: \[2, 3, 1, 64\]"),
        (2, lambda t: t.expand(2, 3, 4, 64), r"cos was of shape \[2, 3, 4, 64\]; allowed: \[2, 3, 1, 64\]"),
        (2, lambda t: torch.cat((t, t), -1), "cos was of last dim 128; allowed: 64 or 128, at most the head dim 64"),
        (2, lambda t: t[..., :32], "cos was of last dim 32"),
        (3, lambda t: t[:, :1], r"sin was of shape \[2, 1, 1, 64\]; allowed: \[2, 3, 1, 64\], as cos"),
        (0, lambda t: t[..., :48], "query was of head dim 48; allowed: head dim 64 or 128"),
        (1, lambda t: t[:, :, :0], r"key was empty, of shape \[2, 3, 0, 64\]"),
    ],
)
def test_rejected_tensors(position, change, message):
    tensors = list(inputs())
    tensors[position] = change(tensors[position])
    with pytest.raises(OperatorRejected, match=message):
        apply(*tensors)
