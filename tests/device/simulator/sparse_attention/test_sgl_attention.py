"""``sgl_sparse_flash_attention`` of sgl-kernel-npu: torch_npu's attention, with maxima and sums in pages too."""

import math

import pytest
import torch

from npudiff.device.simulator import PROFILES, OperatorRejected, use_profile

QUERIES, KEYS, HEADS = [2, 1], [37, 20], 4
SCALE = 0.07


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture
def call(lab):
    """As sglang calls it under context parallelism: [T, N, D], pages, no mask, chosen tokens packed to the front."""
    order, _ = lab.page_table(KEYS)
    keys, ropes = ([draw(n, 1, dim, seed=n) for n in KEYS] for dim in (512, 64))
    indices = [
        torch.stack([torch.randperm(n)[:16] for _ in range(rows)]) for n, rows in zip(KEYS, QUERIES, strict=True)
    ]
    key = lab.pack(keys, "PA_BSND", order)
    return {
        "query": draw(sum(QUERIES), HEADS, 512, seed=1),
        "key": key,
        "value": key.clone(),
        "sparse_indices": torch.cat(indices)[:, None].int(),
        "scale_value": SCALE,
        "query_rope": draw(sum(QUERIES), HEADS, 64, seed=2),
        "key_rope": lab.pack(ropes, "PA_BSND", order),
        "sparse_mode": 0,
        "return_softmax_lse": True,
        **lab.where(QUERIES, KEYS, ("TND", "PA_BSND"), "kv"),
    }


def run(call):
    return torch.ops.npu.sgl_sparse_flash_attention(**call)


def test_attention_and_log_sum_exps_in_pages(call, lab):
    out, maximum, total = run(call)
    assert out.shape == (sum(QUERIES), HEADS, 512)
    assert maximum.shape == total.shape == (1, sum(QUERIES), HEADS)
    row = 0
    for number, rows in enumerate(QUERIES):
        pages = call["block_table"][number].tolist()
        for _ in range(rows):
            tokens = call["sparse_indices"][row, 0].tolist()
            places = [(pages[t // lab.BLOCK_SIZE], t % lab.BLOCK_SIZE) for t in tokens]
            key = torch.stack([call["key"][place] for place in places])[:, 0].double()
            rope = torch.stack([call["key_rope"][place] for place in places])[:, 0].double()
            scores = (call["query"][row].double() @ key.T + call["query_rope"][row].double() @ rope.T) * SCALE
            lse = maximum[0, row].double() + total[0, row].double().log()
            assert torch.allclose(lse, scores.logsumexp(-1), rtol=1e-5, atol=1e-5)
            weights = scores.softmax(-1)
            bound = 2.0**-8 * (weights @ key).abs() + 1.1 * 2.0**-8 * (weights @ key.abs()) + 1e-5
            assert ((out[row].double() - weights @ key).abs() <= bound).all()
            row += 1


def test_it_is_torch_npus_attention_where_that_has_the_form(call):
    plain = call | {"return_softmax_lse": False}
    tensors = [plain.pop(name) for name in ("query", "key", "value", "sparse_indices", "scale_value")]
    theirs, _, _ = torch.ops.npu.npu_sparse_flash_attention(*tensors, **plain, attention_mode=2)
    out, maximum, total = run(call | {"return_softmax_lse": False})
    assert torch.equal(out, theirs)
    assert maximum.shape == total.shape == (0,)
    assert torch.equal(run(call)[0], out)


def test_gaps_are_taken_since_the_host_code_copies(call):
    expected = run(call)[0]
    wide = torch.full((*call["key"].shape[:-1], 1024), math.nan).bfloat16()
    wide[..., ::2] = call["key"]
    with use_profile(PROFILES["pessimistic"]):
        assert torch.equal(run(call | {"key": wide[..., ::2], "value": wide[..., ::2]})[0], expected)


def test_another_mode_is_refused_in_its_own_name(call):
    with pytest.raises(OperatorRejected, match=r"^sgl_sparse_flash_attention: attention_mode was 0"):
        run(call | {"attention_mode": 0})
