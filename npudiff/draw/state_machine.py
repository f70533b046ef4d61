"""The state machine of a component with history: rules draw steps, and each step is judged at once."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, initialize

from npudiff.draw.chooser import SOURCE, Chooser
from npudiff.model.anything import AnyCase, AnyStep
from npudiff.model.component import TraceListener
from npudiff.model.constraints import Constraints


class Machine(RuleBasedStateMachine):
    """Base of the machines of components: a run begins with ``opening``, and each rule takes one step.

    Rules draw with ``choose`` and call ``take``. A rule that cannot take its step takes another one: a rule with a
    precondition that is rarely met makes Hypothesis throw away whole runs.

    Parameters
    ----------
    constraints : Constraints
        Where steps and sizes are drawn.
    listener : TraceListener
        What is told of each step.
    """

    case: Any
    """The trace so far."""
    choose: Chooser
    """Draws options, in every rule of the run."""

    def __init__(self, constraints: Constraints, listener: TraceListener) -> None:
        super().__init__()
        self.constraints, self._listener = constraints, listener
        self.case = None

    def opening(self) -> AnyCase:
        """Draw a case without steps."""
        raise NotImplementedError(f"{type(self).__name__} has to draw the case with which a run begins")

    @initialize(source=SOURCE)
    def begin(self, source: Random) -> None:
        """Draw the opening and begin the trace."""
        self.choose = Chooser(source)
        self.case = self.opening()
        self._listener.begin(self.case)

    def take(self, step: AnyStep) -> None:
        """Add a step to the trace, and have it judged."""
        self.case = replace(self.case, steps=(*self.case.steps, step))
        self._listener.take(self.case)

    def teardown(self) -> None:
        """End the trace."""
        if self.case is not None:
            self._listener.end(self.case)
