"""Wrong treatment of rows that pad a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from npudiff import Target, mutant
from npudiff.device.ascend.padded_tokens import (
    Outputs,
    masked,
    native,
    native_masked,
    real_in,
    real_of_chunks,
    weights_of,
)
from npudiff.reference.padded_tokens import PaddedTokensInputs

NOWHERE = -1


def padded(inputs: PaddedTokensInputs) -> torch.Tensor:
    """Which rows are padded, bool ``[rows, 1]``."""
    return ~real_in(inputs, real_of_chunks(inputs, inputs.totals)).unsqueeze(1)


@mutant(
    native_masked,
    "MOE-10 sgl-project/sglang/pull/40672: the number of one rank's real rows bounds those of all ranks",
    supports={"ranks": range(2, 65)},
)
def first_rows_of_a_gathered_buffer(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Take as many rows for real as the first rank has."""
    row = torch.arange(len(inputs.states), device=inputs.states.device)
    real = row < real_of_chunks(inputs, inputs.totals)[0]
    return native(inputs, masked(inputs, real), inputs.experts)


@mutant(
    native_masked,
    "MOE-10 sgl-project/sglang/pull/40672: real rows are taken for the first ones of the gathered buffer",
    supports={"ranks": range(2, 65)},
)
def all_real_rows_first(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Take as many rows for real as all ranks have together, from the first on."""
    row = torch.arange(len(inputs.states), device=inputs.states.device)
    real = row < real_of_chunks(inputs, inputs.totals).sum()
    return native(inputs, masked(inputs, real), inputs.experts)


@mutant(
    native_masked,
    "sgl-project/sglang/pull/9107: real rows of the whole batch, where those of a chunk belong",
    supports={"split": (True,)},
)
def total_of_all_ranks_for_each(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Leave out where a chunk begins in its batch."""
    real = real_in(inputs, inputs.totals)
    return native(inputs, masked(inputs, real), inputs.experts)


@mutant(native_masked, "MOE-20 sgl-project/sgl-kernel-npu/pull/723: at most, where less is meant")
def one_padded_row_too_many(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Take the row behind the last real one for real."""
    real = real_in(inputs, real_of_chunks(inputs, inputs.totals) + 1)
    return native(inputs, masked(inputs, real), inputs.experts)


@mutant(native_masked, "sgl-project/sglang/pull/14423: num_token_non_padded_cpu is not renewed when a batch is padded")
def total_of_the_batch_before(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Use what the graph's buffer holds."""
    real = real_in(inputs, real_of_chunks(inputs, inputs.earlier))
    return native(inputs, masked(inputs, real), inputs.experts)


@mutant(native_masked, "sgl-project/sglang/pull/31838: one way of routing is not told how many rows are real")
def padding_not_masked(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Leave all weights as they are."""
    return native(inputs, inputs.weights, inputs.experts)


@mutant(native_masked, "NAN-05 flashinfer-ai/flashinfer/issues/941: 0 times NaN is NaN")
def weights_times_zero(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Multiply weights by a mask."""
    kept = (~padded(inputs)).to(inputs.weights.dtype)
    return native(inputs, inputs.weights * kept, inputs.experts)


@mutant(
    native_masked,
    "sglang 0.5.23 layers/moe/topk.py 1913: experts of padded rows are -1 on other devices; "
    "the operators that count them here want all rows",
)
def padded_rows_have_no_experts(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Overwrite experts of padded rows with -1."""
    experts = inputs.experts.masked_fill(padded(inputs), NOWHERE)
    return native(inputs, weights_of(inputs), experts)


@mutant(native_masked, "MOE-11 sgl-project/sglang/pull/24850: experts of padded rows are what memory holds")
def padded_experts_uninitialised(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Write experts of real rows only; the rest of the memory holds the bits of a large number."""
    memory = torch.full_like(inputs.experts, 0x4B1D4B1D)
    experts = torch.where(padded(inputs), memory, inputs.experts)
    return native(inputs, weights_of(inputs), experts)


@mutant(native_masked, "MOE-19 vllm-project/vllm-ascend/issues/6059: counts add up to fewer rows than there are")
def padded_rows_not_counted(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Count real rows only."""
    right = native(inputs, weights_of(inputs), inputs.experts)
    real = inputs.experts[~padded(inputs).squeeze(1)].flatten().long()
    return {**right, "counts": torch.bincount(real, minlength=len(inputs.factors))}


@mutant(
    native_masked,
    "MOE-13 vllm-project/vllm-ascend/pull/15827: the mask has as many entries for a rank as it has tokens, "
    "without their padding",
)
def mask_of_unpadded_chunks(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Lay out the mask by the largest number of real rows; what it does not reach is taken for real."""
    counts = real_of_chunks(inputs, inputs.totals)
    place = torch.arange(int(counts.max()), device=counts.device)
    short = (place < counts.unsqueeze(1)).flatten()
    real = torch.ones(len(inputs.states), dtype=torch.bool, device=counts.device)
    real[: len(short)] = short
    return native(inputs, masked(inputs, real), inputs.experts)


@mutant(native_masked, "NAN-05 Dao-AILab/flash-attention/issues/2374: what has no weight is multiplied by it")
def zeros_times_padded_rows(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Bring rows together by a matrix of weights, which has zeros for the rows of all others."""
    weights = weights_of(inputs)
    right = native(inputs, weights, inputs.experts)
    factors = inputs.factors[inputs.experts.long()].float()
    gains = torch.diag((weights.float() * factors).sum(dim=1))
    return {**right, "output": (gains @ inputs.states.float()).to(inputs.states.dtype)}


@mutant(
    native_masked, "GRF-07 xLLM-AI/xllm/pull/2065: a graph is found by its size, whatever each rank has", stateful=True
)
def distribution_of_the_capture() -> Callable[[PaddedTokensInputs, Target], Outputs]:
    """Keep how many rows of each rank were real when a buffer of this size was captured."""
    graphs: dict[object, torch.Tensor] = {}

    def replayed(inputs: PaddedTokensInputs, target: Target) -> Outputs:
        key = (len(inputs.totals), inputs.chunk)
        counts = graphs.setdefault(key, real_of_chunks(inputs, inputs.totals))
        return native(inputs, masked(inputs, real_in(inputs, counts)), inputs.experts)

    return replayed
