"""A kernel of moe_gating that is wrong in graphs alone; TWIN=1 in the environment runs it without the mistake."""

import os

import torch

import npudiff
from npudiff.device.ascend.moe_gating import best, scored, weighted

TWIN = bool(os.environ.get("TWIN"))


@npudiff.implementation("moe_gating", name="g_moe_gating_01_clears_what_it_wrote", on_device=True, graph=True, stateful=True)
def clears_what_it_wrote():
    """Of the matrix of weights those of the call before are cleared, not all; in a graph that is the call before the capture."""
    kept = {"matrix": None, "index": None}

    def gating(inputs, target):
        scores = scored(inputs)
        index = best(inputs, scores)
        weights = weighted(inputs, scores.gather(1, index)).to(inputs.logits.dtype)
        matrix = kept["matrix"]
        if matrix is None or matrix.shape != inputs.logits.shape or matrix.dtype != inputs.logits.dtype:
            matrix = kept["matrix"] = torch.zeros(inputs.logits.shape, dtype=inputs.logits.dtype, device=inputs.logits.device)
        elif TWIN:
            matrix.zero_()
        else:
            matrix.scatter_(1, kept["index"], 0.0)
        kept["index"] = index
        matrix.scatter_(1, index, weights)
        named = torch.zeros_like(inputs.logits, dtype=torch.bool).scatter(1, index, value=True)
        return {"weights": matrix, "top_k": named.sum(dim=1)}

    return gating
