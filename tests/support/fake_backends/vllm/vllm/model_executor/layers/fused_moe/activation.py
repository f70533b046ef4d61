from enum import Enum


class MoEActivation(Enum):
    SILU = "silu"
    SWIGLUSTEP = "swiglustep"
    SWIGLUOAI = "swigluoai"
    SWIGLUOAI_UNINTERLEAVE = "swigluoai_uninterleave"
