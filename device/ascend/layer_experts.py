"""The mixture of experts of a layer: the router, and the experts that it chooses.

Sources: sglang 0.5.23, ``hardware_backend/npu/moe/topk.py`` 19-154, ``models/step3p5.py`` 142-269.
"""

from __future__ import annotations

import torch

from npudiff import Target
from npudiff.device.ascend import moe_experts
from npudiff.reference.decoder_layer import Mixture
from npudiff.reference.moe_experts import MoeExpertsInputs


class AscendExperts:
    """Experts as the backend runs them.

    Parameters
    ----------
    weights : Mixture
        On the device.
    target : Target
        Where to run.
    scaled_by_operator : bool
        Whether the gating operator multiplies by the scaling factor, or the model does (Step-3.5).
    """

    def __init__(self, weights: Mixture, target: Target, *, scaled_by_operator: bool) -> None:
        self.weights, self.target, self.scaled_by_operator = weights, target, scaled_by_operator

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return routed and shared experts of normalised states ``[tokens, hidden_size]``."""
        weights, index = self.choice(states)
        return self.sums(states, weights.to(states.dtype), index)

    def choice(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights, float32, and int32 experts of each token, ``[tokens, top_k]``."""
        own = self.weights
        weights, index, _ = torch.ops.npu.npu_moe_gating_top_k(
            states.float() @ own.router,
            own.top_k,
            bias=own.bias,
            k_group=own.kept_groups,
            group_count=own.groups,
            group_select_mode=1,
            norm_type=1,
            routed_scaling_factor=own.scaling if self.scaled_by_operator else 1.0,
        )
        return weights if self.scaled_by_operator else weights * own.scaling, index

    def sums(self, states: torch.Tensor, weights: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Weighted sum of the chosen experts of each token, and the shared one."""
        everywhere = torch.arange(self.weights.routed.up.experts, device=states.device)
        inputs = MoeExpertsInputs(states, index, weights, everywhere, self.weights.routed, self.weights.shared)
        result: torch.Tensor = self.adapter(inputs, self.target)
        return result

    def adapter(self, inputs: MoeExpertsInputs, target: Target) -> torch.Tensor:
        """The chain of grouped products, in whatever form weights are."""
        return moe_experts.routed_v2(inputs, target)


def rounded(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A product that is accumulated in float32 and rounded once, as a device's is; on a CPU torch.matmul may differ."""
    return (rows.float() @ weight.float()).to(rows.dtype)
