from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MoeRouterInput:
    expert_map: torch.Tensor | None
    global_redundant_expert_num: int
    mc2_mask: torch.Tensor | None
    apply_router_weight_on_input: bool
    pertoken_scale: torch.Tensor | None = None
