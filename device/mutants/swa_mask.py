"""Mutants of the sliding-window mask."""

from __future__ import annotations

import torch

from npudiff import mutant
from npudiff.device.ascend.swa_mask import swa_mask_eager, window_mask
from npudiff.device.mutants.kept import keeping
from npudiff.model.implementation import ImplementationFunction, Target
from npudiff.reference.swa_mask import SwaMaskInputs

SEED_PULL_REQUEST = "sgl-project/sglang/pull/24582"


@mutant(swa_mask_eager, f"SWA-02 {SEED_PULL_REQUEST}")
def mask_left_context_512(inputs: SwaMaskInputs, target: Target) -> torch.Tensor:
    """The caller forgets the window, and the default of 512 stays."""
    left_context = None if inputs.window is None else 512
    return window_mask(inputs.kv_lengths, inputs.capacity, left_context)


@mutant(swa_mask_eager, f"SWA-03 {SEED_PULL_REQUEST}")
def mask_minus_one(inputs: SwaMaskInputs, target: Target) -> torch.Tensor:
    """A layer without a window passes -1 into the arithmetic of the window."""
    left_context = -1 if inputs.window is None else inputs.window
    return window_mask(inputs.kv_lengths, inputs.capacity, left_context)


@mutant(swa_mask_eager, f"SWA-04 {SEED_PULL_REQUEST}")
def mask_without_tail(inputs: SwaMaskInputs, target: Target) -> torch.Tensor:
    """Keys that are not written yet stay visible."""
    mask = window_mask(inputs.kv_lengths, inputs.capacity, inputs.window)
    keys = torch.arange(inputs.capacity, device=mask.device)
    return mask & (keys < inputs.kv_lengths.reshape(-1, 1)).unsqueeze(1)


MOST_PROGRAMS = 65_535
"""Programs of one launch: the product of all axes of its grid."""


@mutant(swa_mask_eager, "TRI-04 vllm-project/vllm-ascend/pull/10138: the product of a grid's axes is cut to 65535")
def mask_of_65535_programs(inputs: SwaMaskInputs, target: Target) -> torch.Tensor:
    """A program for each key of each request, up to the most that there are; the rest of the mask stays cleared."""
    mask = window_mask(inputs.kv_lengths, inputs.capacity, inputs.window).contiguous()
    mask.view(-1)[MOST_PROGRAMS:] = False
    return mask


@mutant(swa_mask_eager, "SWA-36 vllm-project/vllm-ascend/issues/3024: the table is cut at 10,000")
def mask_table_of_10000(inputs: SwaMaskInputs, target: Target) -> torch.Tensor:
    """Positions come from a table of 10,000 entries, whatever the longest request is."""
    table = torch.arange(10_000 + 1, device=target.device)
    return window_mask(table[inputs.kv_lengths.long()], inputs.capacity, inputs.window)


@mutant(
    swa_mask_eager,
    "GRF-02 InfiniTensor/InfiniLM/pull/526: a replay has the lengths of the captured batch",
    stateful=True,
    graph=True,
)
def lengths_of_the_capture() -> ImplementationFunction[SwaMaskInputs, torch.Tensor]:
    """Keep lengths that the dummy run had."""
    return keeping(swa_mask_eager, "kv_lengths")
