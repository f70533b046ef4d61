"""What an implementation is known to compute instead, in some cases: the right answer to inputs that were changed.

A known issue that only says which cases fail hides whatever else breaks in them. One that says what is computed there
hides nothing: ``window += 1`` is judged as the reference is with a key more.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from npudiff.errors import UsageError, unknown
from npudiff.model.anything import AnyInputs
from npudiff.model.constraints import Constraints

_CHANGE = re.compile(r"\s*([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*)*)\s*([-+*]?=)\s*([^\s=].*?)\s*")

_WORDS: Mapping[str, Any] = {"none": None, "true": True, "false": False}


@dataclass(frozen=True)
class Change:
    """A change of one field of a component's inputs."""

    path: tuple[str, ...]
    """Names of fields, from the outside in."""
    sign: str
    """``=``, ``+=``, ``-=`` or ``*=``."""
    value: Any
    """None, a bool, a number, or a text."""

    def __str__(self) -> str:
        words = {None: "none", True: "true", False: "false"}
        value = words[self.value] if self.value is None or isinstance(self.value, bool) else self.value
        return f"{'.'.join(self.path)} {self.sign} {value}"

    @classmethod
    def parsed(cls, text: str) -> Change:
        """Read a change as it is written: ``window += 1``, ``sinks = none``, ``routed.activation.limit = 7.0``.

        Raises
        ------
        UsageError
            If it is none.
        """
        match = _CHANGE.fullmatch(text)
        if match is None:
            raise UsageError(f"a change of inputs is written as FIELD = VALUE, or with +=, -= or *=; got {text!r}")
        path, sign, value = match.groups()
        read = _WORDS[value] if value in _WORDS else _number_or_text(value)
        if sign != "=" and (isinstance(read, (bool, str)) or read is None):
            raise UsageError(f"{sign} needs a number: {text!r}")
        return cls(tuple(path.split(".")), sign, read)

    def of(self, inputs: AnyInputs) -> AnyInputs:
        """Return inputs with the change made; a field that holds nothing is left as it is by ``+=``, ``-=`` and ``*=``.

        Raises
        ------
        UsageError
            If there is no such field, or its value cannot be changed so.
        """
        return self._of(inputs, self.path)

    def _of(self, part: Any, path: Sequence[str]) -> Any:  # noqa: ANN401 - any dataclass
        names = [one.name for one in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
        if path[0] not in names:
            raise UsageError(f"{self}: {unknown(f'field of {type(part).__name__}', path[0], names)}")
        before = getattr(part, path[0])
        after = self._of(before, path[1:]) if path[1:] else self._changed(before)
        return dataclasses.replace(part, **{path[0]: after})

    def _changed(self, before: Any) -> Any:  # noqa: ANN401 - any field
        if before is None and self.sign != "=":
            return None
        try:
            if self.sign == "=":
                return type(before)(self.value) if isinstance(before, enum.Enum) else self.value
            return before * self.value if self.sign == "*=" else before + self.value * (1 if self.sign == "+=" else -1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{self}: {error}") from None


def _number_or_text(value: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


@dataclass(frozen=True)
class Instead:
    """What is known to be computed in some cases."""

    where: Constraints
    """The cases."""
    changes: tuple[Change, ...]
    """What makes inputs those to which it is the right answer."""
    link: str = field(default="", compare=False)
    """Where that is tracked."""

    def of(self, inputs: AnyInputs) -> AnyInputs:
        """Return the inputs to which the right answer is what is computed.

        Raises
        ------
        UsageError
            If they have no such fields.
        """
        for change in self.changes:
            inputs = change.of(inputs)
        return inputs

    @property
    def plain(self) -> dict[str, Any]:
        """What it is in a finding, of whose case it is known."""
        return {"instead": [str(change) for change in self.changes], "link": self.link}

    @classmethod
    def of_plain(cls, plain: object) -> Instead:
        """Return what a finding says is known, in whatever case.

        Raises
        ------
        UsageError
            If it is damaged.
        """
        texts, link = (plain.get("instead"), plain.get("link", "")) if isinstance(plain, Mapping) else (None, "")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in (*texts, link)):
            raise UsageError("what is known to be computed in the case of a finding is damaged")
        return cls(Constraints(), tuple(map(Change.parsed, texts)), link)

    def __str__(self) -> str:
        return ", ".join(map(str, self.changes))


def known_answers(known: Sequence[Instead], inputs: AnyInputs) -> Iterator[tuple[AnyInputs, str]]:
    """Yield inputs whose right answers are known to be given for these, and in words how they differ.

    All that is known first; then less of it, since a part may have been mended.
    """
    for count in range(len(known), 0, -1):
        for some in itertools.combinations(known, count):
            changed = inputs
            for one in some:
                changed = one.of(changed)
            yield changed, "; ".join(f"{one} ({one.link})" if one.link else str(one) for one in some)
