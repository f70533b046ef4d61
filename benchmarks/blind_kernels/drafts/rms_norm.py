"""A kernel of rms_norm that is wrong in graphs alone; TWIN=1 in the environment runs it without the mistake."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))


@npudiff.implementation(
    "rms_norm", name="g_rms_norm_01_two_workspaces_in_turn", supports={"rounding": ("once",)}, on_device=True, graph=True, stateful=True
)
def two_workspaces_in_turn():
    """Cores add squares up in one of two workspaces, and clear the other for the next call; a replay has always the same."""
    kept = {"shape": None, "spaces": None, "turn": 0}

    def norm(inputs, target):
        total = inputs.hidden if inputs.residual is None else inputs.hidden + inputs.residual
        wide = total.float()
        if kept["shape"] != len(wide):
            kept["shape"], kept["turn"] = len(wide), 0
            kept["spaces"] = [torch.zeros(len(wide), 1, device=wide.device) for _ in range(2)]
        mine, other = kept["spaces"][kept["turn"]], kept["spaces"][1 - kept["turn"]]
        if TWIN:
            mine.zero_()
        else:
            other.zero_()
            kept["turn"] = 1 - kept["turn"]
        for piece in wide.split(4096, dim=1):
            mine += piece.pow(2).sum(dim=1, keepdim=True)
        rstd = torch.rsqrt(mine / wide.shape[1] + inputs.epsilon)
        weight = inputs.weight.float() + (1.0 if inputs.kind == "gemma" else 0.0)
        return {"output": (wide * rstd * weight).to(total.dtype), "rstd": rstd, "sum": total}

    return norm
