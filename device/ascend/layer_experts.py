"""The mixture of experts of a layer: router, sorting by expert, grouped products, and bringing rows back together.

Sources: sglang 0.5.23, ``hardware_backend/npu/moe/topk.py`` 19-154 and ``matmul.py`` 23-50, ``models/step3p5.py`` 142-269.
"""

from __future__ import annotations

import torch

from device.ascend import moe_finalize, moe_routing, swiglu
from npudiff import Target
from reference.decoder_layer import ExpertWeights
from reference.moe_finalize import MoeFinalizeInputs
from reference.moe_routing import MoeRoutingInputs
from reference.swiglu import Activation, SwigluInputs

COUNTS = 1
"""group_list_type: rows of each group."""


class AscendExperts:
    """Experts as the backend runs them, with bfloat16 weights.

    Parameters
    ----------
    weights : ExpertWeights
        On the device.
    target : Target
        Where to run.
    scaled_by_operator : bool
        Whether the gating operator multiplies by the scaling factor, or the model does (Step-3.5).
    """

    def __init__(self, weights: ExpertWeights, target: Target, *, scaled_by_operator: bool) -> None:
        self.weights, self.target, self.scaled_by_operator = weights, target, scaled_by_operator

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Return routed and shared experts of normalised states ``[tokens, hidden_size]``."""
        weights, index = self.choice(states)
        return self.routed(states, weights, index) + self.shared(states)

    def choice(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights, float32, and int32 experts of each token, ``[tokens, chosen]``."""
        own = self.weights
        weights, index, _ = torch.ops.npu.npu_moe_gating_top_k(
            states.float() @ own.router,
            own.chosen,
            bias=own.bias,
            k_group=own.kept_groups,
            group_count=own.groups,
            group_select_mode=1,
            norm_type=1,
            routed_scaling_factor=own.scaling if self.scaled_by_operator else 1.0,
        )
        return weights if self.scaled_by_operator else weights * own.scaling, index

    def routed(self, states: torch.Tensor, weights: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Sum of the chosen experts of each token."""
        experts = len(self.weights.up)
        routing = MoeRoutingInputs(states, index, experts, 0, experts)
        rows, places, counts, _ = moe_routing.second(routing, moe_routing.COUNTS)
        rows = grouped(self.activated(grouped(rows, self.weights.up, counts)), self.weights.down, counts)
        together = MoeFinalizeInputs(rows, places.view(index.shape), weights.to(states.dtype), None)
        return moe_finalize.finalized(together, together.places.flatten(), moe_finalize.BY_ROW, rows)

    def activated(self, both: torch.Tensor) -> torch.Tensor:
        """Gated activation of ``[copies, 2 * width]``."""
        return gated(both, self.weights.limit, self.target)

    def shared(self, states: torch.Tensor) -> torch.Tensor:
        """The expert that every token has."""
        both = rounded(states, self.weights.shared_up[0])
        return rounded(gated(both, self.weights.shared_limit, self.target), self.weights.shared_down[0])


def gated(both: torch.Tensor, limit: float | None, target: Target) -> torch.Tensor:
    """Gated activation as the configuration's limit says."""
    result: torch.Tensor = swiglu.by_configuration(SwigluInputs(both, Activation.SILU, limit, None), target)
    return result


def grouped(rows: torch.Tensor, weights: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Rows of each group times its matrix, with npu_grouped_matmul."""
    (result,) = torch.ops.npu.npu_grouped_matmul(
        [rows], [weights], split_item=2, group_type=0, group_list=counts, group_list_type=COUNTS
    )
    return result  # type: ignore[no-any-return]


def rounded(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A product that is accumulated in float32 and rounded once, as a device's is; on a CPU torch.matmul may differ."""
    return (rows.float() @ weight.float()).to(rows.dtype)
