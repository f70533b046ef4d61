"""Dropout of ``npu_fusion_attention``, in three versions: against float64 with the bits of the mask, and its draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fusion_draws import LAYOUTS, by_head, laid_out, normal
from npudiff.device.simulator import OperatorRejected

BATCH, HEADS, ROWS, KEYS, DIM, SCALE, KEEP = 2, 4, 5, 9, 32, 0.17, 0.75
WEIGHTS = BATCH * HEADS * ROWS * KEYS
VERSIONS = {"": "", "_v2": "_v2", "_v3": "_v3"}
LENGTHS = ([3, 3, 5], [4, 8, 9])


def masked(seed, offset=0, count=WEIGHTS):
    """The bits that a call draws from a seed."""
    drawn = torch.ops.npu._npu_dropout_gen_mask.Tensor(torch.zeros(1), [count], 1 - KEEP, seed, offset)
    return torch.from_numpy(np.unpackbits(drawn.numpy(), count=count, bitorder="little")).bool()


def parts(dtype=torch.float16):
    shapes = ((HEADS, ROWS), (2, KEYS), (2, KEYS), (HEADS, ROWS))
    return [normal(BATCH, heads, count, DIM, dtype=dtype, seed=seed) for seed, (heads, count) in enumerate(shapes)]


def exact(given, kept):
    """Result and gradients in float64, of [..., N, S, D] and a mask [..., N, S, S]."""
    leaves = [one.double().requires_grad_() for one in given[:3]]
    query, key, value = leaves
    group = query.shape[-3] // key.shape[-3]
    keys, values = (one.repeat_interleave(group, -3) for one in (key, value))
    weights = (query @ keys.mT * SCALE).softmax(-1) * kept / KEEP
    result = weights @ values
    return result.detach(), torch.autograd.grad(result, leaves, given[3].double())


def near(given, wanted):
    torch.testing.assert_close(given.double(), wanted, rtol=2**-8, atol=2**-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("version", VERSIONS)
def test_values_and_gradients_are_those_of_the_mask(layout, version):
    given = parts()
    query, key, value, dy = (laid_out(one, layout) for one in given)
    torch.manual_seed(7)
    out = getattr(torch.ops.npu, f"npu_fusion_attention{version}")(
        query, key, value, HEADS, layout, scale=SCALE, keep_prob=KEEP
    )
    seed, offset = (int(one) for one in out[4:6])
    assert (seed, offset) == (7, 0)
    kept = masked(7).view(BATCH, HEADS, ROWS, KEYS)
    result, gradients = exact(given, kept)
    near(by_head(out[0], layout, HEADS), result)
    more = {"seed": out[4], "offset": out[5]} | ({} if version == "_v3" else {"numels": out[6]})
    back = getattr(torch.ops.npu, f"npu_fusion_attention_grad{version}")(
        query, key, value, dy, HEADS, layout, scale_value=SCALE, keep_prob=KEEP,
        softmax_max=out[1], softmax_sum=out[2], attention_in=out[0], **more,
    )  # fmt: skip
    for one, wanted, heads in zip(back[:3], gradients, (HEADS, 2, 2), strict=True):
        near(by_head(one, layout, heads), wanted)


@pytest.mark.parametrize("version", VERSIONS)
def test_packed_sequences_have_their_bits_one_after_the_other(version):
    query, key, value, dy = (
        normal(count, heads, DIM, seed=seed) for seed, (count, heads) in enumerate(((5, 4), (9, 2), (9, 2), (5, 4)))
    )
    lengths = map(torch.tensor, LENGTHS) if version == "_v3" else LENGTHS
    ends = dict(zip(("actual_seq_qlen", "actual_seq_kvlen"), lengths, strict=True))
    torch.manual_seed(11)
    out = getattr(torch.ops.npu, f"npu_fusion_attention{version}")(
        query, key, value, HEADS, "TND", scale=SCALE, keep_prob=KEEP, **ends
    )
    back = getattr(torch.ops.npu, f"npu_fusion_attention_grad{version}")(
        query, key, value, dy, HEADS, "TND", scale_value=SCALE, keep_prob=KEEP, softmax_max=out[1], softmax_sum=out[2],
        attention_in=out[0], seed=out[4], offset=out[5], **ends,
    )  # fmt: skip
    bits, start = masked(11, count=HEADS * (3 * 4 + 2 * 1)), 0
    for rows, keys in ((slice(0, 3), slice(0, 4)), (slice(3, 5), slice(8, 9))):
        count, length = rows.stop - rows.start, keys.stop - keys.start
        kept = bits[start : start + HEADS * count * length].view(HEADS, count, length)
        start += HEADS * count * length
        own = [
            one[where].transpose(0, 1)
            for one, where in zip((query, key, value, dy), (rows, keys, keys, rows), strict=True)
        ]
        result, gradients = exact(own, kept)
        near(out[0][rows].transpose(0, 1), result)
        for one, wanted, where in zip(back[:3], gradients, (rows, keys, keys), strict=True):
            near(one[where].transpose(0, 1), wanted)


@pytest.mark.parametrize("version", ["", "_v2"])
def test_a_mask_that_is_given_decides(version):
    query, key, value, _ = given = parts()
    call = getattr(torch.ops.npu, f"npu_fusion_attention{version}")
    mask = torch.ops.npu._npu_dropout_gen_mask.Tensor(torch.zeros(1), [BATCH, HEADS, ROWS, KEYS], 1 - KEEP, 5, 2)
    state = torch.get_rng_state()
    out = call(query, key, value, HEADS, "BNSD", scale=SCALE, keep_prob=KEEP, dropout_mask=mask, seed=5, offset=2)
    assert out[4:] == (5, 2, WEIGHTS)
    assert torch.equal(torch.get_rng_state(), state)
    near(out[0], exact(given, masked(5, 2).view(BATCH, HEADS, ROWS, KEYS))[0])
    with pytest.raises(OperatorRejected, match="dropout_mask was of 4 bytes; allowed: a bit for each of 360 weights"):
        call(query, key, value, HEADS, "BNSD", keep_prob=KEEP, dropout_mask=mask[:4])
    with pytest.raises(OperatorRejected, match="dropout_mask was bool"):
        call(query, key, value, HEADS, "BNSD", keep_prob=KEEP, dropout_mask=mask.bool())


def test_a_generator_moves_on_with_each_mask_and_only_then():
    query, key, value, _ = parts()

    def drawn(keep_prob):
        return torch.ops.npu.npu_fusion_attention(query, key, value, HEADS, "BNSD", keep_prob=keep_prob)

    torch.manual_seed(3)
    first, second = drawn(KEEP), drawn(KEEP)
    assert not torch.equal(first[0], second[0])
    assert first[4:6] != second[4:6]
    state = torch.get_rng_state()
    drawn(1.0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    assert torch.equal(drawn(KEEP)[0], first[0])


def test_bits_come_in_whole_words_and_are_as_likely_as_asked():
    mask = torch.ops.npu._npu_dropout_gen_mask.Tensor(torch.zeros(1), [100_001], 0.3, 1, 0)
    assert (mask.dtype, mask.shape) == (torch.uint8, (100_096 // 8,))
    share = np.unpackbits(mask.numpy(), count=100_001).mean()
    assert abs(share - 0.7) < 6 * (0.21 / 100_001) ** 0.5
    assert not torch.equal(mask, torch.ops.npu._npu_dropout_gen_mask.Tensor(torch.zeros(1), [100_001], 0.3, 1, 4))
    with pytest.raises(OperatorRejected, match=r"dropout probability has to be between 0 and 1, but got 1.5"):
        torch.ops.npu._npu_dropout_gen_mask.Tensor(torch.zeros(1), [8], 1.5, 0, 0)
