"""How drafts are made."""

from enum import Enum


class SpeculativeAlgorithm(Enum):
    EAGLE = 1
