"""npu_attention_update against its formula in float64, and against attention over the whole history."""

import math

import pytest
import torch

from npudiff.device.simulator import OperatorRejected, use_profile


@pytest.fixture
def update(lab):
    del lab
    return torch.ops.npu.npu_attention_update


def drawn(parts, rows, dim, dtype=torch.float32, spread=1.0):
    generator = torch.Generator().manual_seed(parts * 1000 + rows)
    lse = [torch.randn(rows, generator=generator) * spread for _ in range(parts)]
    return lse, [torch.randn(rows, dim, generator=generator).to(dtype) for _ in range(parts)]


def merged(lse, parts):
    """Return the formula of the documentation in float64, and the sum of the absolute terms."""
    logs = torch.stack(lse).double()
    total = logs.logsumexp(0)
    weights = (logs - total).exp().unsqueeze(-1)
    values = torch.stack(parts).double()
    return (weights * values).sum(0), (weights * values.abs()).sum(0), total


@pytest.mark.few(20)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0, 1000.0])
@pytest.mark.parametrize(("parts", "rows", "dim"), [(1, 4, 32), (2, 240, 128), (3, 16, 8), (7, 5, 512), (16, 3, 24)])
def test_the_formula(update, *, parts, rows, dim, spread, dtype):
    lse, local_out = drawn(parts, rows, dim, dtype, spread)
    out, lse_out = update(lse, local_out, 1)
    expected, magnitude, total = merged(lse, local_out)
    assert out.dtype == dtype
    assert lse_out.dtype == torch.float32
    torch.testing.assert_close(lse_out.double(), total, rtol=1e-6, atol=2e-6)
    # The logs are rounded where they are subtracted, by up to half a unit of the largest.
    exponent = 2.0**-24 * (4 + 2 * torch.stack(lse).abs().amax())
    unit = torch.finfo(dtype).eps / 2 if dtype != torch.float32 else 0.0
    bound = unit * expected.abs() + (exponent + parts * 2.0**-23) * magnitude + 1e-30
    assert ((out.double() - expected).abs() <= bound * (1 + unit)).all()


@pytest.mark.parametrize("chunks", [[300], [128, 172], [1, 100, 199], [0, 300], [100, 0, 200]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parts_of_a_history_give_attention_over_all_of_it(lab, update, chunks, dtype):
    """As vllm-ascend and sglang call it: log-sum-exps [T * N] of [T, N, 1], outputs as float32 [T * N, D]."""
    sequences = lab.ragged([3], [300], heads=4, kv_heads=4, dim=128, rope=64, dtype=dtype)
    query, key = sequences.whole.queries[0], sequences.whole.keys[0]
    lse, outs, start = [], [], 0
    for length in chunks:
        rows = slice(start, start + length)
        part = lab.ragged([3], [length], heads=4, kv_heads=4, dim=128, rope=64, dtype=dtype)
        part.queries[:], part.query_ropes[:] = sequences.queries, sequences.query_ropes
        for name in ("keys", "values", "key_ropes"):
            getattr(part, name)[:] = [tensor[:, rows].contiguous() for tensor in getattr(sequences, name)]
        output, log = lab.call(lab.pack(part, "TND") | {"softmax_scale": 0.07})
        outs.append(output.float().flatten(0, 1))
        lse.append(log.flatten())
        start += length
    out, lse_out = update(lse, outs, 1)
    seen = torch.ones(3, 300, dtype=torch.bool)
    expected, bound, expected_lse = lab.exact(query, key, sequences.values[0], seen, scale=0.07)
    merged_out = out.view(3, 4, 128).transpose(0, 1).double()
    # Each part's output is rounded once more than one call's.
    magnitude = 2 * torch.finfo(dtype).eps * sequences.values[0].abs().amax()
    assert ((merged_out - expected).abs() <= bound + magnitude).all()
    torch.testing.assert_close(lse_out.view(3, 4).T.double(), expected_lse, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("absent", [math.inf, -math.inf])
def test_an_absent_part_has_no_weight(update, absent):
    lse, local_out = drawn(3, 6, 16)
    lse[1][2:4] = absent
    out, lse_out = update(lse, local_out, 1)
    expected, _, total = merged([lse[0][2:4], lse[2][2:4]], [local_out[0][2:4], local_out[2][2:4]])
    torch.testing.assert_close(out[2:4].double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lse_out[2:4].double(), total, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_the_values_of_an_absent_part_must_be_finite(update, garbage):
    lse, local_out = drawn(2, 6, 16)
    lse[0][2] = math.inf
    local_out[0][2, 5] = garbage
    out, _ = update(lse, local_out, 0)
    assert out[2].isnan().tolist() == [column == 5 for column in range(16)]
    assert out[:2].isfinite().all()


@pytest.mark.parametrize("absent", [math.inf, -math.inf])
def test_a_row_that_no_part_has_is_nan(update, absent):
    lse, local_out = drawn(2, 6, 16)
    for log in lse:
        log[1] = absent
    out, lse_out = update(lse, local_out, 1)
    assert out[1].isnan().all()
    assert lse_out[1].isnan()
    assert out[[0, 2, 3, 4, 5]].isfinite().all()


def test_positive_infinity_is_a_choice(update):
    lse, local_out = drawn(2, 6, 16)
    lse[0][2] = math.inf
    with use_profile("pessimistic"):
        out, lse_out = update(lse, local_out, 1)
    assert out[2].isnan().all()
    assert lse_out[2].isnan()


def test_the_log_sum_exp_is_given_if_it_is_asked_for(update):
    lse, local_out = drawn(2, 6, 16)
    out, lse_out = update(lse, local_out, 0)
    assert lse_out is None
    assert torch.equal(out, update(lse, local_out, 1)[0])


def test_sums_go_by_the_order_of_the_list(update):
    """Sixteen parts whose terms spread over many powers of two: float32 additions, one after the other."""
    lse, local_out = drawn(16, 40, 16, spread=4.0)
    out, lse_out = update(lse, local_out, 1)
    maximum = torch.stack(lse).amax(0)
    total = torch.zeros(40)
    for part in lse:
        total = total + torch.exp(part - maximum)
    merged_lse = maximum + torch.log(total)
    expected = torch.zeros(40, 16)
    for part, values in zip(lse, local_out, strict=True):
        expected = expected + torch.exp(part - merged_lse)[:, None] * values
    assert torch.equal(lse_out, merged_lse)
    assert torch.equal(out, expected)
    backwards, _ = update(lse[::-1], local_out[::-1], 1)
    assert not torch.equal(backwards, out)


def test_inputs_are_not_written(update):
    lse, local_out = drawn(2, 6, 16)
    lse[0][2] = math.inf
    before = [tensor.clone() for tensor in (*lse, *local_out)]
    update(lse, local_out, 1)
    assert all(torch.equal(*pair) for pair in zip(before, (*lse, *local_out), strict=True))


def test_no_rows(update):
    out, lse_out = update([torch.empty(0)] * 2, [torch.empty(0, 16)] * 2, 1)
    assert out.shape == (0, 16)
    assert lse_out.shape == (0,)


LSE, OUT = torch.zeros(4), torch.zeros(4, 16)
REFUSED = [
    ([], [OUT], 0, "lse was 0 tensors; allowed: 1 to 16"),
    ([LSE] * 17, [OUT] * 17, 0, "lse was 17 tensors; allowed: 1 to 16"),
    ([LSE] * 2, [OUT], 0, "local_out was 1 tensors; allowed: 2"),
    ([LSE], [OUT], 2, "update_type was 2; allowed: 0 or 1"),
    ([LSE], [OUT], -1, "update_type was -1; allowed: 0 or 1"),
    ([LSE.half()], [OUT], 0, "lse was float16; allowed: float32"),
    ([LSE], [OUT.double()], 0, "local_out was float64; allowed: float16 or"),
    ([LSE] * 2, [OUT, OUT.half()], 0, r"local_out was float16; allowed: float32, as local_out\[0\]"),
    ([LSE[None]], [OUT], 0, r"lse was of rank 2, \[1, 4\]; allowed: rank 1"),
    ([LSE], [OUT[None]], 0, r"local_out was of rank 3, \[1, 4, 16\]; allowed: rank 2"),
    ([LSE, LSE[:3]], [OUT] * 2, 0, r"lse was of shape \[3\]; allowed: \[4\], as lse\[0\]"),
    ([LSE] * 2, [OUT, OUT[:, :8]], 0, r"local_out was of shape \[4, 8\]; allowed: \[4, 16\]"),
    ([LSE], [OUT[:3]], 0, r"local_out was of shape \[3, 16\]; allowed: \[4, 16\]"),
    ([LSE], [torch.zeros(4, 12)], 0, "local_out was of head dim 12; allowed: a multiple of 8 up to 512"),
    ([LSE], [torch.zeros(4, 520)], 0, "local_out was of head dim 520; allowed: a multiple of 8 up to 512"),
    ([LSE], [torch.zeros(4, 0)], 0, "local_out was of head dim 0; allowed: a multiple of 8 up to 512"),
]


@pytest.mark.parametrize(("lse", "local_out", "kind", "message"), REFUSED, ids=[row[3] for row in REFUSED])
def test_refused(update, lse, local_out, kind, message):
    with pytest.raises(OperatorRejected, match=f"npu_attention_update: {message}.*161002"):
        update(lse, local_out, kind)
