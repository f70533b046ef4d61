"""Something that must hold for an implementation: equivalence with the reference, or a relation between its runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from npudiff.constraints import Box

if TYPE_CHECKING:
    from npudiff.compare import Comparison
    from npudiff.component import Subject


class NotApplicable(Exception):  # noqa: N818 - it is an answer, not an error
    """The property says nothing about this case and implementation; the message is the reason, and it is counted."""


@dataclass(frozen=True)
class Property:
    """Something that must hold.

    Attributes
    ----------
    name : str
        Name in listings, a verb phrase with underscores.
    summary : str
        One sentence that says what must hold.
    check : callable
        ``check(subject, case)`` returns a comparison; raises ``NotApplicable`` where the property says nothing.
    within : mapping
        Axes that the property narrows, so that its cases stay cheap and it applies to them.
    needs : mapping
        Axes of the other runs that it compares with; an implementation that supports no such case is left out.
    share : float
        Examples of this property per example of equivalence.
    """

    name: str
    summary: str
    check: Callable[[Subject, Any], Comparison]
    within: Box = field(default_factory=dict)
    needs: Box = field(default_factory=dict)
    share: float = 0.1
