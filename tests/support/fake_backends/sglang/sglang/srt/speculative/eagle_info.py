from dataclasses import dataclass
from typing import Any


@dataclass
class EagleVerifyInput:
    draft_token: Any
    custom_mask: Any
    spec_steps: int
    topk: int
    draft_token_num: int


@dataclass
class EagleDraftInput:
    topk_p: Any = None
    topk_index: Any = None
    bonus_tokens: Any = None
    hidden_states: Any = None
