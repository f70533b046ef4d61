from enum import Enum


class LinearAttnKernelBackend(Enum):
    TRITON = "triton"
