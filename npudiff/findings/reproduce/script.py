"""A recording as a script: the calls in a straight line, and after them the part that all scripts share."""

from __future__ import annotations

import keyword
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npudiff.text import clipped, printable

Event = dict[str, Any]
"""A line of a tape."""

WAITED = "raised when the device was waited for"
"""How a run ends of which no call raises, and the device then."""


@dataclass
class Step:
    """Something that was written down: a tensor that is loaded, a call, a number, an output, a new run."""

    kind: str
    """``loaded``, ``call``, ``read``, ``fetched`` or ``run``."""
    said: Event
    """What was written."""
    result: Any = None
    """Of a call, what it returned: names with their shapes, in lists as they were; None for what has a name already."""
    raised: bool = False
    returned: bool = False
    """Of a call, how it ended; both are false for one that never did."""

    @property
    def names(self) -> list[str]:
        """Variables that a call makes."""
        return [item["name"] for item in made_in(self.result)]

    @property
    def given(self) -> set[str]:
        """Variables that a call is given."""
        return set(names_in([self.said["positional"], list(self.said["named"].values())]))


def made_in(result: Any) -> Iterator[Event]:  # noqa: ANN401 - a plain value
    """Yield the tensors that a call has made."""
    if isinstance(result, list):
        for item in result:
            yield from made_in(item)
    elif result is not None:
        yield result


@dataclass
class Recording:
    """What was written on a tape."""

    steps: list[Step] = field(default_factory=list)
    """In their order."""
    memories: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where the bytes of each loaded memory lie on the tape: first byte and count."""
    judged: list[Event] = field(default_factory=list)
    """Outputs and what they must be; tensors by their variables."""
    context: str = ""
    """What was compared with what."""
    skipped: list[str] = field(default_factory=list)
    """Outputs that no operator has computed, of which the script says nothing."""
    refused: str = ""
    """Why there is no script, as the end of a sentence; empty if there may be one."""
    ended: str = ""
    """How it ended; empty if the process did not live to say it."""
    unchanged: list[Event] = field(default_factory=list)
    """Inputs that must hold what they held."""

    @classmethod
    def of(cls, events: Sequence[Event]) -> Recording:
        """Return what a tape says."""
        one = cls()
        for event in events:
            kind = event["kind"]
            if kind in ("loaded", "call", "read", "run", "fetched"):
                one.steps.append(Step(kind, event))
            elif kind == "made":
                call = one._last_call()
                call.result, call.returned = event["result"], True
            elif kind == "raised":
                one._last_call().raised = True
            elif kind == "memory":
                one.memories[event["name"]] = (event["at"], event["bytes"])
            elif kind == "judged":
                one.judged, one.context, one.skipped = event["outputs"], event["context"], event["skipped"]
            elif kind == "unchanged":
                one.unchanged = event["tensors"]
            elif kind == "refused":
                one.refused = event["why"]
            elif kind == "ended":
                one.ended = event["how"]
        return one

    def _last_call(self) -> Step:
        return next(step for step in reversed(self.steps) if step.kind == "call")

    @property
    def calls(self) -> list[Step]:
        """The calls."""
        return [step for step in self.steps if step.kind == "call"]

    @property
    def last(self) -> Step | None:
        """The last call, if it did not return."""
        calls = self.calls
        return calls[-1] if calls and not calls[-1].returned else None

    @property
    def is_cut_short(self) -> bool:
        """Whether the process did not live to say how it ended, or the device did not when it was waited for."""
        return self.ended in ("", WAITED)

    def memory_of(self) -> dict[str, str]:
        """Return the memory that each variable lies in."""
        found = {step.said["name"]: step.said["memory"] for step in self.steps if step.kind == "loaded"}
        found |= {step.said["name"]: step.said["name"] for step in self.steps if step.kind == "fetched"}
        for step in self.calls:
            found |= {item["name"]: item["memory"] for item in made_in(step.result)}
        return found

    def trim(self, *, everything: bool = False) -> None:
        """Take out what nothing needs: plain calls whose results nobody uses, and what only they were given.

        Parameters
        ----------
        everything : bool
            Whether all calls stay, as where a device said too late which of them it was.
        """
        last = self.last
        self.steps = [
            step for step in self.steps if step.kind != "call" or step.returned or step is last
        ]  # what was raised and caught has made nothing
        memories = self.memory_of()
        needed = set(names_in([list(item.values()) for item in (*self.judged, *self.unchanged)]))
        kept: list[Step] = []
        for step in reversed(self.steps):
            if step.kind == "fetched":
                if step.said["name"] in needed:
                    needed |= set(names_in(step.said["of"]))
                    kept.append(step)
            elif step.kind == "call":
                used = bool(needed & set(step.names) or {memories[name] for name in needed} & set(step.said["writes"]))
                if everything or step is last or used or not _is_plain(step):
                    needed |= step.given
                    kept.append(step)
            else:
                kept.append(step)
        self.steps = self._without_unused(kept[::-1])

    def _without_unused(self, steps: list[Step]) -> list[Step]:
        """Leave out loaded variables that no call has, numbers read from what is not there, and runs without calls."""
        used = set(names_in([list(item.values()) for item in (*self.judged, *self.unchanged)]))
        for step in steps:
            if step.kind == "call":
                used |= step.given
            elif step.kind == "fetched":
                used |= {step.said["name"], *names_in(step.said["of"])}
        there = used | {name for step in steps if step.kind == "call" for name in step.names}
        kept = [
            step for step in steps
            if step.kind not in ("loaded", "read") or step.said["name"] in (used if step.kind == "loaded" else there)
        ]  # fmt: skip
        loaded = {step.said["memory"] for step in kept if step.kind == "loaded"}
        self.memories = {name: place for name, place in self.memories.items() if name in loaded}
        return kept

    @property
    def size(self) -> int:
        """Bytes of all memories."""
        return sum(count for _, count in self.memories.values())


def _is_plain(step: Step) -> bool:
    """Whether a call is one of torch's own, whose schema says all that it does."""
    return str(step.said["operator"]).startswith(("aten::", "prim::", "prims::"))


@dataclass(frozen=True)
class Words:
    """How arguments are written."""

    device: str
    """The kind of the device on which it was recorded, which is the script's ``DEVICE``; any other stands as it is."""
    names: Callable[[str], str] = str
    """Turns a variable into what stands for it."""

    def of(self, value: Any) -> str:  # noqa: ANN401 - what ``plain`` of the recorder returns
        """Return an argument as Python."""
        if isinstance(value, list):
            return f"[{', '.join(map(self.of, value))}]"
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        return self._named(value) if isinstance(value, dict) else repr(value)

    def _named(self, value: dict[str, Any]) -> str:
        kind, said = next(iter(value.items()))
        if kind == "device":
            return "DEVICE" if said.partition(":")[0] == self.device else repr(said)
        if kind == "view":
            return f"torch.as_strided({self.names(said)}, {value['shape']}, {value['stride']}, {value['offset']})"
        if kind in ("tensor", "storage"):
            return self.names(said) + (".untyped_storage()" if kind == "storage" else "")
        return str(said)  # torch.float32, torch.strided, torch.preserve_format


def names_in(value: Any) -> Iterator[str]:  # noqa: ANN401 - what ``plain`` of the recorder returns
    """Yield the variables that an argument refers to."""
    if isinstance(value, list):
        for item in value:
            yield from names_in(item)
    elif isinstance(value, dict):
        yield from (str(value[kind]) for kind in ("tensor", "view", "storage") if kind in value)


WIDTH = 116

_SHARED = Path(__file__).with_name("standalone.py")
_FOR_CHECKERS = re.compile(r"  # (noqa|fmt): .*$", re.MULTILINE)
_COPIED = "# --- what follows is copied\n"

_FIRST_LINES = """\
# Written by npudiff: the calls of an implementation, as the dispatcher saw them, and what must come of them.
# It needs torch, torch_npu and a device: python reproduce.py [--device npu:0]
# Exit code 1 if the result is wrong, 0 if it is not, 2 if the calls cannot be made here.
#
"""
"""Nothing that comes from elsewhere stands in the first two lines, where Python looks for an encoding."""

_IMPORTS = """\
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # torch_npu is imported below, where it can be said why not
import torch
"""


def script_of(recording: Recording, about: Sequence[str], data: str | None, device: str, end: str) -> str:
    """Return the script.

    Parameters
    ----------
    recording : Recording
        What it does; trimmed.
    about : sequence of str
        Lines that say what it is, for people. They may hold anything.
    data : str or None
        Name of the file with its tensors, beside it.
    device : str
        Kind of the device on which it was recorded.
    end : str
        What came of the last call, if it did not return.
    """
    shared = _FOR_CHECKERS.sub("", _SHARED.read_text(encoding="utf-8").partition(_COPIED)[2])
    operators = sorted({f"{step.said['operator']}.{step.said['overload']}" for step in recording.calls})
    operators = [name for name in operators if not name.startswith("aten::")]
    where = "None" if data is None else f'Path(__file__).with_name("{data}")'
    body = "\n".join(_Writer(recording, device).lines())
    parts = [
        _FIRST_LINES,
        "".join(f"# {clipped(printable(line), 400)}\n" for line in about),
        f"{_IMPORTS}\n\ndef calls(run: Run, DEVICE: str) -> None:\n{textwrap.indent(body, '    ')}\n\n\n",
        f"OPERATORS = {_listed(operators)}\n\n",
        shared.rstrip("\n"),
        '\n\n\nif __name__ == "__main__":\n',
        f"    sys.exit(main(calls, {where}, OPERATORS, {clipped(printable(end), 400)!a}))\n",
    ]
    return "".join(parts)


def _listed(names: Sequence[str]) -> str:
    return "[" + "".join(f"\n    {name!a}," for name in names) + ("\n]" if names else "]")


class _Writer:
    """Writes the calls. What is not part of a run is done on the host, as npudiff does it."""

    def __init__(self, recording: Recording, device: str) -> None:
        self.recording, self.device = recording, device
        self.inside, self.outside = Words(device), Words("", self._host)
        inside = [step for step in recording.calls if step.said["inside"]]
        self.on_device = {name for step in inside for name in step.names}
        self.on_device |= {name for step in inside for name in step.given}
        self.on_device |= set(names_in([item["tensor"] for item in recording.unchanged]))

    def _host(self, name: str) -> str:
        return f"{name}.cpu()" if name in self.on_device else name

    def lines(self) -> Iterator[str]:
        """Yield the body of the function."""
        expected = set(
            names_in([[item[part] for part in ("value", "bound", "gain") if part in item] for item in self.judged])
        )
        loaded = [step.said for step in self.recording.steps if step.kind == "loaded"]
        yield from (self._load(said) for said in loaded if said["name"] not in expected)
        runs, number = sum(step.kind == "run" for step in self.recording.steps), 0
        for step in self.recording.steps:
            if step.kind == "run":
                number += 1
                yield f"\n# run {number} of the implementation" if runs > 1 else ""
            else:
                yield from self._step(step)
        if self.recording.is_cut_short and self.recording.last is None:
            yield "\nrun.last()  # all calls returned, and the device is waited for"
        if self.judged or self.recording.unchanged:
            yield ""
        if self.recording.context:
            yield f"# compared: {clipped(printable(self.recording.context), 300)}"
        if self.recording.skipped:
            yield f"# not compared, since no operator has computed it: {printable(', '.join(self.recording.skipped))}"
        yield from (self._load(said) for said in loaded if said["name"] in expected)
        yield from self._judging()

    @property
    def judged(self) -> list[dict[str, Any]]:
        return self.recording.judged

    def _step(self, step: Step) -> Iterator[str]:
        if step.kind == "read":
            yield f"# Python read {step.said['number']!r} from {step.said['name']}"
        elif step.kind == "fetched":
            copied = ".clone()" if self.device == "cpu" else ""  # there a copy to the host is none
            yield f"{step.said['name']} = {self.inside.of(step.said['of'])}.cpu(){copied}"
        elif step.kind == "call":
            if step is self.recording.last:
                yield "\nrun.last()"
            yield _call(step, self.inside if step.said["inside"] else self.outside)

    def _load(self, said: dict[str, Any]) -> str:
        """A line that takes a tensor from the file; of one that is not all of its memory in order, how it lies."""
        shape, stride, offset = said["shape"], said["stride"], said["offset"]
        parts = [repr(said["memory"]), said["dtype"], str(tuple(shape))]
        if stride != _contiguous(shape):
            parts.append(f"stride={tuple(stride)}")
        if offset:
            parts.append(f"offset={offset}")
        if said["name"] not in self.on_device or said["device"].partition(":")[0] != self.device:
            parts.append('device="cpu"')
        return f"{said['name']} = run.load({', '.join(parts)})"

    def _judging(self) -> Iterator[str]:
        for item in self.judged:
            parts = [self.outside.of(item[part]) for part in ("actual", "value", "bound", "gain") if part in item]
            parts += ["nan_is_nan=True"] if item["nan_is_nan"] else []
            yield f"run.check({printable(item['name'])!a}, {item['dtype']}, {', '.join(parts)})"
        for item in self.recording.unchanged:
            tensor = self.inside.of(item["tensor"])
            yield f"run.unchanged({printable(item['name'])!a}, {item['memory']!r}, {tensor})"


def _contiguous(shape: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return strides[::-1]


def _call(step: Step, words: Words) -> str:
    """A call with what it makes on its left, and shapes and dtypes of that beside it."""
    arguments = list(_arguments(step.said, words))
    target = _target(step.result)
    function = _function(step.said["operator"], step.said["overload"])
    line = f"{target} = {function}" if target else function
    made = clipped(
        "; ".join(f"{item['dtype'].removeprefix('torch.')} {item['shape']}" for item in made_in(step.result))
    )
    short = f"{line}({', '.join(arguments)})"
    if len(short) <= WIDTH:
        return short + (f"  # {made}" if made else "")
    return (f"# {made}\n" if made else "") + f"{line}(\n" + "".join(f"    {one},\n" for one in arguments) + ")"


def _arguments(said: dict[str, Any], words: Words) -> Iterator[str]:
    """Arguments as text: by their names, but for torch's own operators, whose order everybody knows."""
    names = said["names"][: len(said["positional"])]
    named = not said["operator"].startswith("aten::") and all(map(_is_name, names)) and "self" not in names[1:]
    for name, value in zip(names, said["positional"], strict=True):
        yield f"{name}={words.of(value)}" if named and name != "self" else words.of(value)
    for name, value in said["named"].items():
        yield f"{name}={words.of(value)}" if _is_name(name) else f"**{{{name!a}: {words.of(value)}}}"


def _is_name(text: str) -> bool:
    return text.isidentifier() and text.isascii() and not keyword.iskeyword(text)


def _function(operator: str, overload: str) -> str:
    """``torch.ops.npu.npu_rms_norm.default``, whatever the parts are called."""
    space, _, name = operator.partition("::")
    text = "torch.ops"
    for part in (space, name, overload):
        text = f"{text}.{part}" if _is_name(part) else f"getattr({text}, {part!a})"
    return text


def _target(result: Any, *, inner: bool = False) -> str:  # noqa: ANN401 - a plain value
    """What stands on the left of a call; empty where it makes nothing new."""
    if isinstance(result, list):
        if not any(True for _ in made_in(result)):
            return "_" if inner else ""
        parts = [_target(item, inner=True) for item in result]
        return f"[{', '.join(parts)}]" if inner or len(parts) == 1 else ", ".join(parts)
    if result is None:
        return "_" if inner else ""
    return str(result["name"])
