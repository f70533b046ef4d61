"""``npu_moe_re_routing`` against the offsets of its documentation, token by token."""

import pytest
import torch

from npudiff.device.simulator import OperatorRejected, UndefinedBehaviour


def re_routing(*arguments, **options):
    return torch.ops.npu.npu_moe_re_routing(*arguments, **options)


def moved(counts):
    """Where each token goes, by two sums over counts."""
    places = []
    for rank in range(len(counts)):
        for expert in range(len(counts[0])):
            before = sum(row[other] for row in counts for other in range(expert))
            before += sum(counts[other][expert] for other in range(rank))
            places += range(before, before + counts[rank][expert])
    return places


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("count_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("counts", [[[2, 0, 3], [1, 4, 0]], [[5]], [[0, 0], [0, 2], [1, 0]], [[0, 0]]])
def test_tokens_go_where_the_documentation_says(dtype, count_dtype, counts):
    total = sum(map(sum, counts))
    tokens = torch.arange(total * 4).reshape(total, 4).to(dtype)
    scales = torch.randn(total)
    given = torch.tensor(counts, dtype=count_dtype)
    out, out_scales, index, of_experts = re_routing(tokens, given, per_token_scales=scales)
    for source, place in enumerate(moved(counts)):
        assert torch.equal(out[place], tokens[source])
        assert out_scales[place] == scales[source]
        assert index[place] == source
    assert index.dtype == torch.int32
    assert of_experts.dtype == count_dtype
    assert of_experts.tolist() == [sum(column) for column in zip(*counts, strict=True)]


def test_without_scales_their_output_has_its_shape():
    scales = re_routing(torch.ones(2, 3).half(), torch.tensor([[1, 1]]))[1]
    assert (scales.shape, scales.dtype) == ((2,), torch.float32)


X, COUNTS = torch.ones(3, 4).half(), torch.tensor([[1, 2]])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X[0], COUNTS), {}, "tokens was of rank 1; .*tokens dim should larger than 1"),
        ((X, COUNTS[0]), {}, "expert_token_num_per_rank was of rank 1; .*should larger than 1"),
        ((X[None], COUNTS), {}, "tokens was of rank 3"),
        ((X.float(), COUNTS), {}, "tokens was float32"),
        ((X[:, :0], COUNTS), {}, "tokens was 0; allowed: 1 to 16383"),
        ((X, COUNTS.float()), {}, "expert_token_num_per_rank was float32"),
        ((X, COUNTS), {"expert_token_num_type": 0}, "expert_token_num_type was 0"),
        ((X, COUNTS), {"idx_type": 1}, "idx_type was 1"),
        ((X, COUNTS), {"tokens_dtype": 290}, "tokens_dtype was 290"),
        ((X, COUNTS), {"per_token_scales": torch.ones(2)}, r"per_token_scales was of shape \[2\]"),
        ((X, COUNTS), {"per_token_scales": torch.ones(3).half()}, "per_token_scales was float16"),
    ],
)
def test_rejections(arguments, options, message):
    with pytest.raises(OperatorRejected, match=f"npu_moe_re_routing: {message}"):
        re_routing(*arguments, **options)


@pytest.mark.parametrize("counts", [[[1, 1]], [[4, -1]]])
def test_counts_that_are_not_the_tokens_are_undefined(counts):
    with pytest.raises(UndefinedBehaviour, match="expert_token_num_per_rank"):
        re_routing(X, torch.tensor(counts))
