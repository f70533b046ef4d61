from dataclasses import dataclass
from typing import Any


@dataclass
class MoeRunnerConfig:
    num_experts: int | None = None
    top_k: int | None = None
    activation: str = "silu"
    gemm1_alpha: float | None = None
    gemm1_clamp_limit: float | None = None
    layer: Any = None
