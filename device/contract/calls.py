"""Forms of calls: which operator, how many positional arguments, which keywords, and what kinds of values."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from npudiff.files.writing import write_file

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDED_CALLS = Path(__file__).with_name("calls.json")
"""The forms of the calls that the adapters make."""

NAMESPACES = ("npu", "atb")

Kinds = frozenset[str]
"""What was passed as one argument: ``Tensor``, ``None``, ``int[]`` and so on; several where calls differ in it."""


@dataclass(frozen=True)
class Call:
    """The form of one or more calls, as they stand in the adapter: nothing filled in, nothing left out."""

    operator: str
    """``name``, or ``name.overload`` where the adapter names the overload; with its namespace unless that is
    ``npu``."""
    positional: tuple[Kinds, ...]
    """Kinds of each positional argument."""
    keywords: Mapping[str, Kinds]
    """Kinds of each keyword argument."""

    @classmethod
    def of(cls, operator: str, positional: Iterable[object], keywords: Mapping[str, object]) -> Call:
        """Return the form of one call."""
        named = {name: frozenset((kind_of(keywords[name]),)) for name in sorted(keywords)}
        return cls(operator.removeprefix("npu::"), tuple(frozenset((kind_of(one),)) for one in positional), named)

    @classmethod
    def parse(cls, text: str) -> Call:
        """Return the form that ``str`` has written.

        Raises
        ------
        ValueError
            If the text is none.
        """
        match = re.fullmatch(r"([\w.:]+)\((.*)\)", text)
        if match is None:
            raise ValueError(f"not the form of a call: {text!r}")
        positional: list[Kinds] = []
        keywords: dict[str, Kinds] = {}
        for part in filter(None, match[2].split(", ")):
            name, separator, kinds = part.rpartition("=")
            if separator:
                keywords[name] = frozenset(kinds.split("|"))
            else:
                positional.append(frozenset(kinds.split("|")))
        return cls(match[1], tuple(positional), dict(sorted(keywords.items())))

    def __str__(self) -> str:
        """``npu_quantize(Tensor, None|Tensor, int, axis=int)``."""
        parts = [_joined(kinds) for kinds in self.positional]
        parts += [f"{name}={_joined(kinds)}" for name, kinds in self.keywords.items()]
        return f"{self.operator}({', '.join(parts)})"

    @property
    def shape(self) -> tuple[str, int, tuple[str, ...]]:
        """What calls of one form have in common, whatever they pass."""
        return self.operator, len(self.positional), tuple(self.keywords)

    def merged(self, other: Call) -> Call:
        """Return the form of the calls of both; they must be alike but for the kinds of what they pass."""
        positional = tuple(mine | theirs for mine, theirs in zip(self.positional, other.positional, strict=True))
        return Call(
            self.operator, positional, {name: self.keywords[name] | other.keywords[name] for name in self.keywords}
        )

    def is_among(self, recorded: Mapping[tuple[str, int, tuple[str, ...]], Call]) -> bool:
        """Whether a recorded form covers this one."""
        one = recorded.get(self.shape)
        return one is not None and one.merged(self) == one


def _joined(kinds: Collection[str]) -> str:
    return "|".join(sorted(kinds))


def kind_of(value: object) -> str:
    """Return the kind of a value, in the words of schemas where they have one."""
    import torch  # noqa: PLC0415

    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        return "Tensor"
    if isinstance(value, (list, tuple)):
        kinds = {kind_of(one) for one in value}
        return f"{'+'.join(sorted(kinds))}[]"
    return type(value).__name__  # int, float, bool, str, dtype


def merge(calls: Iterable[Call]) -> dict[tuple[str, int, tuple[str, ...]], Call]:
    """Return one form for all calls of an operator that have the same arguments, by what they have in common."""
    merged: dict[tuple[str, int, tuple[str, ...]], Call] = {}
    for call in calls:
        known = merged.get(call.shape)
        merged[call.shape] = call if known is None else known.merged(call)
    return merged


def recorded_calls(path: Path = RECORDED_CALLS) -> dict[tuple[str, int, tuple[str, ...]], Call]:
    """Return the recorded forms, by what the calls of each have in common."""
    return merge(Call.parse(text) for text in json.loads(path.read_text(encoding="utf-8"))["calls"])


def write_calls(calls: Iterable[Call], path: Path = RECORDED_CALLS) -> None:
    """Record forms: sorted, one a line."""
    about = "Forms of the operator calls of device/ascend. Written by: python -m npudiff.device.contract calls"
    texts = sorted(str(call) for call in merge(calls).values())
    write_file(path, json.dumps({"about": about, "calls": texts}, indent=1) + "\n")


@contextmanager
def watching(note: Callable[[Call], object]) -> Iterator[None]:
    """Tell ``note`` the form of every operator call that Python code makes within.

    It is what the code says: the dispatcher, which a ``TorchDispatchMode`` sees, drops arguments that equal their
    defaults and turns keywords into positions, and a version whose default or order is another would be judged wrongly.
    """
    import torch  # noqa: PLC0415

    packets, overloads = torch._ops.OpOverloadPacket, torch._ops.OpOverload
    of_packet, of_overload = packets.__call__, overloads.__call__

    def call_packet(self: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any operator's
        if self._qualified_op_name.startswith(tuple(f"{name}::" for name in NAMESPACES)):
            note(Call.of(self._qualified_op_name, args, kwargs))
        return of_packet(self, *args, **kwargs)

    def call_overload(self: Any, /, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - any operator's
        if self.namespace in NAMESPACES:
            note(Call.of(self.name(), args, kwargs))
        return of_overload(self, *args, **kwargs)

    packets.__call__, overloads.__call__ = call_packet, call_overload  # type: ignore[method-assign]
    try:
        yield
    finally:
        packets.__call__, overloads.__call__ = of_packet, of_overload  # type: ignore[method-assign]
