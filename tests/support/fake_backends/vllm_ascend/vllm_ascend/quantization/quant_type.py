from enum import Enum


class QuantType(Enum):
    NONE = 0
    W8A8 = 1
    W4A8 = 2
