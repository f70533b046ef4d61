"""Batches that are padded for a graph: which rows are real, and what padding may do among experts: nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.reference.bounds import Expected, exactly, unspecified
from npudiff.reference.moe_finalize import MoeFinalizeInputs, moe_finalize
from npudiff.reference.moe_routing import MoeRoutingInputs, moe_routing
from npudiff.reference.views import moved_inputs


@dataclass(frozen=True)
class PaddedTokensInputs:
    """Chunks of padded rows, one after the other, the experts that were chosen for them, and how many rows are real.

    A chunk is what one rank computes. It is a batch of its own, or a part of one that was split over ranks; a buffer
    into which the chunks of several ranks were gathered has several.
    """

    states: torch.Tensor
    """``[rows, width]``, bfloat16, float16 or float32. Its rows may be slices of wider ones. Padded rows hold
    anything."""
    experts: torch.Tensor
    """int32 ``[rows, top_k]``: different ones for each row, in ``0..all_experts - 1``, for padded rows as well."""
    weights: torch.Tensor
    """``[rows, top_k]`` of the dtype of ``states``, as they were gated; those of padded rows are anything."""
    factors: torch.Tensor
    """``[all_experts]`` of the same dtype: by what each expert multiplies its rows, exactly. Powers of two stand for
    experts here, so that what is lost is lost by padding alone."""
    totals: torch.Tensor
    """int64 ``[chunks]``: real rows of the whole batch of each chunk."""
    offsets: torch.Tensor
    """int64 ``[chunks]``: the row of its batch with which a chunk begins."""
    earlier: torch.Tensor
    """int64 ``[chunks]``: ``totals`` of the batch before, as a buffer of a graph holds them until it is written."""

    @property
    def chunk(self) -> int:
        """Rows of a chunk."""
        return len(self.states) // len(self.totals)

    def to(self, device: str | torch.device) -> PaddedTokensInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


def padded_tokens(inputs: PaddedTokensInputs) -> dict[str, Expected]:
    """Return what is left of the weights, which experts get how many rows, and the sums over experts.

    Real rows have their weights, padded rows weights of 0, whatever they were. All rows keep their experts, and all are
    counted: the number of rows that experts compute does not depend on how many are real.

    Returns
    -------
    dict
        ``weights``: ``[rows, top_k]`` of the dtype of ``states``. ``experts``: int32 ``[rows, top_k]``. ``counts``:
        int64 ``[all_experts]``. ``output``: ``[rows, width]`` of the dtype of ``states``, ``sum_k weights[r, k] *
        factors[experts[r, k]] * states[r]`` of real rows.

    Raises
    ------
    ValueError
        If shapes contradict each other, an expert does not exist, or a factor does not multiply exactly.

    Notes
    -----
    Nothing is said of padded rows of ``output``: 0 times what they hold is NaN where they hold NaN, and nobody reads
    them. What they hold must not reach a real row.
    """
    _validate(inputs)
    real = real_rows(inputs)
    weights = inputs.weights.masked_fill(~real.unsqueeze(1), 0.0)
    everywhere = MoeRoutingInputs(inputs.states, inputs.experts, len(inputs.factors), 0, len(inputs.factors))
    routed = {name: output.value for name, output in moe_routing(everywhere).items()}
    _refuse_inexact_products(inputs, real)
    expert = torch.arange(len(inputs.factors)).repeat_interleave(routed["counts"])
    rows = routed["rows"] * inputs.factors[expert].unsqueeze(1)
    total = moe_finalize(MoeFinalizeInputs(rows, routed["src_to_dst_row"].to(torch.int32), weights, None))["output"]
    return {
        "weights": exactly(weights),
        "experts": exactly(inputs.experts),
        "counts": exactly(routed["counts"]),
        "output": unspecified(total, ~real),
    }


def real_rows_of_chunks(inputs: PaddedTokensInputs) -> torch.Tensor:
    """Return how many rows of each chunk are real, int64 ``[chunks]``: the first ones.

    Of a batch with ``total`` real rows, a chunk that begins at ``offset`` has ``total - offset``, but none less than 0
    and none more than its rows (sglang 0.5.23, ``model_executor/forward_batch_info.py`` 358-397).
    """
    return (inputs.totals - inputs.offsets).clamp(0, inputs.chunk)


def real_rows(inputs: PaddedTokensInputs) -> torch.Tensor:
    """Return which rows are real, bool ``[rows]``: in a gathered buffer those are no prefix."""
    place = torch.arange(inputs.chunk).unsqueeze(0)
    return (place < real_rows_of_chunks(inputs).unsqueeze(1)).flatten()


def _validate(inputs: PaddedTokensInputs) -> None:
    chunks = len(inputs.totals)
    if not chunks or len(inputs.states) % chunks:
        raise ValueError(f"{len(inputs.states)} rows are not chunks of {chunks} ranks")
    for name in ("offsets", "earlier"):
        if getattr(inputs, name).shape != inputs.totals.shape:
            raise ValueError(f"{name} must be [{chunks}], got {list(getattr(inputs, name).shape)}")
    if inputs.weights.shape != inputs.experts.shape:
        raise ValueError(f"weights must be {list(inputs.experts.shape)}, got {list(inputs.weights.shape)}")
    if any(tensor.dtype != inputs.states.dtype for tensor in (inputs.weights, inputs.factors)):
        raise ValueError(f"weights and factors must be {inputs.states.dtype}, as the states are")


def _refuse_inexact_products(inputs: PaddedTokensInputs, real: torch.Tensor) -> None:
    factors = inputs.factors[inputs.experts[real].to(torch.int64)].to(torch.float64)
    products = inputs.states[real].to(torch.float64).unsqueeze(1) * factors.unsqueeze(2)
    if not torch.equal(products, products.to(inputs.states.dtype).to(torch.float64)):
        raise ValueError("factors must multiply the states exactly, as powers of two do")
