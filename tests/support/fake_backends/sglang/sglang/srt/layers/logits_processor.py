from dataclasses import dataclass

import torch


@dataclass
class LogitsProcessorOutput:
    next_token_logits: torch.Tensor
