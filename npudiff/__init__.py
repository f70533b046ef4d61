"""The engine: how references, implementations and properties are found, run, compared and reported.

This room is generic: it knows components, implementations, targets and cases, not attention. Importing it imports
neither torch nor Hypothesis, so that a command line or a pytest start that does not use them pays nothing.
"""

from npudiff.component import Component, Subject
from npudiff.constraints import Constraints
from npudiff.history import History
from npudiff.implementation import Implementation, implementation
from npudiff.property import NotApplicable, Property
from npudiff.target import Target, TargetUnavailable

__version__ = "0.1.0"

__all__ = [
    "Component",
    "Constraints",
    "History",
    "Implementation",
    "NotApplicable",
    "Property",
    "Subject",
    "Target",
    "TargetUnavailable",
    "__version__",
    "implementation",
]
