"""Small programs of ``aten`` operators that run on two devices in step, and are compared after every step.

A program is a few bytes: each operation reads its own choices (which value, dimension, number) from them, with the
values so far before its eyes, so that most choices are valid and fewer or smaller bytes mean a simpler program.
"""

from npu_programs import arithmetic, copies, gradients, indexing, layers, outputs, reductions, views, writes  # noqa: F401 - they register operations
from npu_programs.choices import Choices, NotPossible
from npu_programs.machine import Difference, Outcome, Program, Step, run
from npu_programs.operations import FAMILIES, OPERATIONS

__all__ = ["FAMILIES", "OPERATIONS", "Choices", "Difference", "NotPossible", "Outcome", "Program", "Step", "run"]
