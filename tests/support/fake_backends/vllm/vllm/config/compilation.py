from enum import Enum


class CUDAGraphMode(Enum):
    NONE = 0
    FULL_DECODE_ONLY = 2
