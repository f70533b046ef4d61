"""The engine: how references, implementations and properties are found, run, compared and reported.

This room is generic: it knows components, implementations, targets and cases, not attention. Importing it imports
neither torch nor Hypothesis, so that a command line or a pytest start that does not use them pays nothing.
"""

from npudiff.model.component import Component, History, NotApplicable, Property, Subject
from npudiff.model.constraints import Constraints
from npudiff.model.implementation import Implementation, Target, TargetUnavailable, implementation, mutant, perturbed
from npudiff.model.version import VERSION

__version__ = VERSION

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
    "mutant",
    "perturbed",
]
