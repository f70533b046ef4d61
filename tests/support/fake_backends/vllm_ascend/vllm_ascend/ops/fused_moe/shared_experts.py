"""An MLP beside experts, of tokens that every rank has, or of own ones."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm_ascend.ascend_config import get_ascend_config
from vllm_ascend.ascend_forward_context import _EXTRA_CTX
from vllm_ascend.told import told


@dataclass
class FusedMoEEvents:
    before_routed_experts: Any


class AscendSharedExperts:
    def __init__(self, layer, moe_config, quant_type, quant_method):
        self.layer, self.config = layer, moe_config
        self.whole = get_ascend_config().enable_shared_expert_dp

    def _mlp(self, rows):
        return self.layer.down_proj(self.layer.act_fn(self.layer.gate_up_proj(rows)[0]))[0]

    def forward(self, rows, events):
        group = get_tp_group()
        if self.config.is_sequence_parallel:
            if self.whole:
                return self._mlp(rows)
            every = self._mlp(group.all_gather(rows, 0)[: _EXTRA_CTX.num_tokens])
            return group.reduce_scatter(self._padded(every), 0)
        part = self._padded(rows).chunk(group.world_size)[group.rank_in_group]
        return group.all_gather(self._mlp(part), 0)[: len(rows)]

    @staticmethod
    def _padded(rows):
        missing = -len(rows) % get_tp_group().world_size
        return torch.nn.functional.pad(rows, (0, 0, missing, 0) if told("padding_in_front") else (0, 0, 0, missing))
