"""What the engine knows of cases, steps, inputs and outputs: nothing, since they are of any component.

A component and its implementations are typed by their own classes (``Component[CaseT, InputsT]``). The engine runs all
of them in one loop, and only passes on what they give.
"""

from typing import Any, TypeAlias

AnyCase: TypeAlias = Any
"""A case of some component: a frozen dataclass, with a field ``steps`` where the component has a history."""

AnyStep: TypeAlias = Any
"""A step of a component with history: a frozen dataclass."""

AnyInputs: TypeAlias = Any
"""Inputs of some component: a frozen dataclass of tensors and numbers."""

AnyOutputs: TypeAlias = Any
"""What an implementation returns: a tensor, a mapping of them, or a live object of a component with history."""
