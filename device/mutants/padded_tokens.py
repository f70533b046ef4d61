"""Wrong treatment of rows that pad a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch

import npudiff
from npudiff import Target
from npudiff.device.ascend.padded_tokens import Outputs, masked, native, real_in, real_of_chunks, weights_of
from npudiff.reference.padded_tokens import PaddedTokensInputs

NOWHERE = -1


def padded(inputs: PaddedTokensInputs) -> torch.Tensor:
    """Which rows are padded, bool ``[rows, 1]``."""
    return ~real_in(inputs, real_of_chunks(inputs, inputs.totals)).unsqueeze(1)


@npudiff.implementation(
    "padded_tokens",
    name="first_rows_of_a_gathered_buffer",
    supports={"ranks": range(2, 65)},
    mutant_of="native_masked",
    wrong="MOE-10 https://github.com/sgl-project/sglang/pull/40672: the number of one rank's real rows bounds those of "
    "all ranks",
)
def first_rows_of_a_gathered_buffer(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Take as many rows for real as the first rank has."""
    on_device = inputs.to(target.device)
    row = torch.arange(len(on_device.states), device=on_device.states.device)
    real = row < real_of_chunks(on_device, on_device.totals)[0]
    return native(on_device, masked(on_device, real), on_device.experts)


@npudiff.implementation(
    "padded_tokens",
    name="all_real_rows_first",
    supports={"ranks": range(2, 65)},
    mutant_of="native_masked",
    wrong="MOE-10 https://github.com/sgl-project/sglang/pull/40672: real rows are taken for the first ones of the "
    "gathered buffer",
)
def all_real_rows_first(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Take as many rows for real as all ranks have together, from the first on."""
    on_device = inputs.to(target.device)
    row = torch.arange(len(on_device.states), device=on_device.states.device)
    real = row < real_of_chunks(on_device, on_device.totals).sum()
    return native(on_device, masked(on_device, real), on_device.experts)


@npudiff.implementation(
    "padded_tokens",
    name="total_of_all_ranks_for_each",
    supports={"split": (True,)},
    mutant_of="native_masked",
    wrong="https://github.com/sgl-project/sglang/pull/9107: real rows of the whole batch, where those of a chunk "
    "belong",
)
def total_of_all_ranks_for_each(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Leave out where a chunk begins in its batch."""
    on_device = inputs.to(target.device)
    real = real_in(on_device, on_device.totals)
    return native(on_device, masked(on_device, real), on_device.experts)


@npudiff.implementation(
    "padded_tokens",
    name="one_padded_row_too_many",
    mutant_of="native_masked",
    wrong="MOE-20 https://github.com/sgl-project/sgl-kernel-npu/pull/723: at most, where less is meant",
)
def one_padded_row_too_many(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Take the row behind the last real one for real."""
    on_device = inputs.to(target.device)
    real = real_in(on_device, real_of_chunks(on_device, on_device.totals) + 1)
    return native(on_device, masked(on_device, real), on_device.experts)


@npudiff.implementation(
    "padded_tokens",
    name="total_of_the_batch_before",
    mutant_of="native_masked",
    wrong="https://github.com/sgl-project/sglang/pull/14423: num_token_non_padded_cpu is not renewed when a batch is "
    "padded",
)
def total_of_the_batch_before(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Use what the graph's buffer holds."""
    on_device = inputs.to(target.device)
    real = real_in(on_device, real_of_chunks(on_device, on_device.earlier))
    return native(on_device, masked(on_device, real), on_device.experts)


@npudiff.implementation(
    "padded_tokens",
    name="padding_not_masked",
    mutant_of="native_masked",
    wrong="https://github.com/sgl-project/sglang/pull/31838: one way of routing is not told how many rows are real",
)
def padding_not_masked(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Leave all weights as they are."""
    on_device = inputs.to(target.device)
    return native(on_device, on_device.weights, on_device.experts)


@npudiff.implementation(
    "padded_tokens",
    name="weights_times_zero",
    mutant_of="native_masked",
    wrong="NAN-05 https://github.com/flashinfer-ai/flashinfer/issues/941: 0 times NaN is NaN",
)
def weights_times_zero(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Multiply weights by a mask."""
    on_device = inputs.to(target.device)
    kept = (~padded(on_device)).to(on_device.weights.dtype)
    return native(on_device, on_device.weights * kept, on_device.experts)


@npudiff.implementation(
    "padded_tokens",
    name="padded_rows_have_no_experts",
    mutant_of="native_masked",
    wrong="sglang 0.5.23 layers/moe/topk.py 1913: experts of padded rows are -1 on other devices; the operators that "
    "count them here want all rows",
)
def padded_rows_have_no_experts(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Overwrite experts of padded rows with -1."""
    on_device = inputs.to(target.device)
    experts = on_device.experts.masked_fill(padded(on_device), NOWHERE)
    return native(on_device, weights_of(on_device), experts)


@npudiff.implementation(
    "padded_tokens",
    name="padded_experts_uninitialised",
    mutant_of="native_masked",
    wrong="MOE-11 https://github.com/sgl-project/sglang/pull/24850: experts of padded rows are what memory holds",
)
def padded_experts_uninitialised(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Write experts of real rows only; the rest of the memory holds the bits of a large number."""
    on_device = inputs.to(target.device)
    memory = torch.full_like(on_device.experts, 0x4B1D4B1D)
    experts = torch.where(padded(on_device), memory, on_device.experts)
    return native(on_device, weights_of(on_device), experts)


@npudiff.implementation(
    "padded_tokens",
    name="padded_rows_not_counted",
    mutant_of="native_masked",
    wrong="MOE-19 https://github.com/vllm-project/vllm-ascend/issues/6059: counts add up to fewer rows than there are",
)
def padded_rows_not_counted(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Count real rows only."""
    on_device = inputs.to(target.device)
    right = native(on_device, weights_of(on_device), on_device.experts)
    real = on_device.experts[~padded(on_device).squeeze(1)].flatten().long()
    return {**right, "counts": torch.bincount(real, minlength=len(on_device.factors))}


@npudiff.implementation(
    "padded_tokens",
    name="mask_of_unpadded_chunks",
    mutant_of="native_masked",
    wrong="MOE-13 https://github.com/vllm-project/vllm-ascend/pull/15827: the mask has as many entries for a rank as "
    "it has tokens, without their padding",
)
def mask_of_unpadded_chunks(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Lay out the mask by the largest number of real rows; what it does not reach is taken for real."""
    on_device = inputs.to(target.device)
    counts = real_of_chunks(on_device, on_device.totals)
    place = torch.arange(int(counts.max()), device=counts.device)
    short = (place < counts.unsqueeze(1)).flatten()
    real = torch.ones(len(on_device.states), dtype=torch.bool, device=counts.device)
    real[: len(short)] = short
    return native(on_device, masked(on_device, real), on_device.experts)


@npudiff.implementation(
    "padded_tokens",
    name="zeros_times_padded_rows",
    mutant_of="native_masked",
    wrong="NAN-05 https://github.com/Dao-AILab/flash-attention/issues/2374: what has no weight is multiplied by it",
)
def zeros_times_padded_rows(inputs: PaddedTokensInputs, target: Target) -> Outputs:
    """Bring rows together by a matrix of weights, which has zeros for the rows of all others."""
    on_device = inputs.to(target.device)
    weights = weights_of(on_device)
    right = native(on_device, weights, on_device.experts)
    factors = on_device.factors[on_device.experts.long()].float()
    gains = torch.diag((weights.float() * factors).sum(dim=1))
    return {**right, "output": (gains @ on_device.states.float()).to(on_device.states.dtype)}


@npudiff.implementation(
    "padded_tokens",
    name="distribution_of_the_capture",
    stateful=True,
    mutant_of="native_masked",
    wrong="GRF-07 https://github.com/xLLM-AI/xllm/pull/2065: a graph is found by its size, whatever each rank has",
)
def distribution_of_the_capture() -> Callable[[PaddedTokensInputs, Target], Outputs]:
    """Keep how many rows of each rank were real when a buffer of this size was captured."""
    graphs: dict[object, torch.Tensor] = {}

    def replayed(inputs: PaddedTokensInputs, target: Target) -> Outputs:
        on_device = inputs.to(target.device)
        key = (len(on_device.totals), on_device.chunk)
        counts = graphs.setdefault(key, real_of_chunks(on_device, on_device.totals))
        return native(on_device, masked(on_device, real_in(on_device, counts)), on_device.experts)

    return replayed
