"""Writing down every operator that is called, as the dispatcher sees it.

What goes on inside an operator is not seen, whether it runs on a device or is simulated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from npudiff.findings.reproduce.operands import Refused, plain, tensors_in
from npudiff.findings.reproduce.tape import Tape
from npudiff.findings.reproduce.variables import Variables

_Written = tuple[torch.Tensor, str | None]
"""What a call writes into, and its variable before: the call may change its shape."""

_READS = torch.ops.aten._local_scalar_dense.default


class Watching(Enum):
    """What is written down: every call, those that go on with what was recorded before, or none."""

    EVERYTHING = "everything"
    FOLLOWING = "following"
    NOTHING = "nothing"


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes calls on a tape.

    Parameters
    ----------
    tape : Tape
        What is written on.
    sealed : bool
        Whether to look, before each call, if memory was written to by anything that the dispatcher does not see: a
        kernel that is launched past it, another thread, the host. Looking waits for the device after each call.

    Attributes
    ----------
    variables : Variables
        What tensors are called.
    watching : Watching
        What is written down at the moment.
    error : BaseException or None
        What the last operator that raised has raised.
    returned : bool
        Whether the last run of the implementation came back.
    """

    def __init__(self, tape: Tape, *, sealed: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape, self.variables = tape, Variables(tape, sealed=sealed)
        self.watching = Watching.FOLLOWING
        self.error: BaseException | None = None
        self.returned = False

    @contextlib.contextmanager
    def at(self, watching: Watching) -> Iterator[None]:
        """Write down more, or less, for a while."""
        before, self.watching = self.watching, watching
        try:
            yield
        finally:
            self.watching = before

    def fetched(self, label: str, tensor: torch.Tensor) -> None:
        """Note an output of a run, which is on the host from here on."""
        with self._guarded():
            if self.variables.is_derived(tensor) and not self.tape.refusal:
                self.tape.note("fetched", name=self.variables.unused(label), of=self.variables.reference(tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Write a call down, make it, and write down what came of it."""
        kwargs = kwargs or {}
        written = self._before(func, args, kwargs)
        try:
            result = func(*args, **kwargs)
        except BaseException as error:
            if written is not None and not _draws(func):
                self.error = error
                self.tape.note("raised")
            raise
        if written is not None:
            self._after(func, (args, kwargs), result, written)
        return result

    def _before(self, func: Any, args: Any, kwargs: Any) -> list[_Written] | None:  # noqa: ANN401
        """Write a call down; return what it writes into, or None if it is not wanted, or cannot be written down."""
        written: list[_Written] | None = None
        with self._guarded():
            if not self.tape.refusal and self._is_wanted(func, args, kwargs):
                written = [(one, self.variables.reference(one).get("tensor")) for one in _written(func, args, kwargs)]
                if not _draws(func):
                    self._note_call(func, args, kwargs, [tensor for tensor, _ in written])
        return written

    def _after(self, func: Any, given: Any, result: object, written: list[_Written]) -> None:  # noqa: ANN401
        """Write down what a call has made. Random numbers are others on another device: those here are loaded."""
        with self._guarded():
            if _draws(func):
                for tensor, _ in written:
                    self.variables.seal(tensor)
                    numbers = tensor.detach().clone()
                    self._note_call(torch.ops.aten.copy_.default, (tensor, numbers), {}, [tensor])
                    self._note_result(torch.ops.aten.copy_.default, None, written)
                    self.variables.seal(tensor)
                return
            self._note_result(func, result, written)
            for tensor in tensors_in(given if func.namespace != "aten" else [one for one, _ in written]):
                self.variables.seal(tensor)
            if func is _READS and isinstance(result, bool | int | float):
                memory = self.variables.memory(given[0][0])
                self.tape.note("read", name="" if memory is None else memory.name, number=result)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever goes wrong in writing down must not look like a fault of the implementation."""
        try:
            yield
        except Refused as refused:
            self.tape.refuse(str(refused))
        except Exception as error:  # noqa: BLE001 - as the sentence says
            self.tape.refuse(f"npudiff could not write it, please report: {type(error).__name__}: {error}")

    def _is_wanted(self, func: Any, args: Any, kwargs: Any) -> bool:  # noqa: ANN401
        if self.watching is not Watching.FOLLOWING:
            return self.watching is Watching.EVERYTHING
        return any(self.variables.is_derived(tensor) for tensor in tensors_in([args, kwargs])) or (
            func._schema.is_mutable and any(self.variables.memory(tensor) for tensor in _written(func, args, kwargs))
        )

    def _note_call(self, func: Any, args: Any, kwargs: Any, written: list[torch.Tensor]) -> None:  # noqa: ANN401
        schema = func._schema

        def said(value: object) -> Any:  # noqa: ANN401 - a plain value
            return plain(value, self.variables.reference, self.variables.storage)

        positional, named = [said(value) for value in args], {name: said(value) for name, value in kwargs.items()}
        self.tape.note(
            "call",
            operator=schema.name,
            overload=schema.overload_name or "default",
            names=[argument.name for argument in schema.arguments],
            positional=positional,
            named=named,
            inside=self.watching is Watching.EVERYTHING,
            writes=[memory.name for tensor in written if (memory := self.variables.memory(tensor)) is not None],
        )

    def _note_result(self, func: Any, result: object, written: list[_Written]) -> None:  # noqa: ANN401
        for tensor, name in written:
            self.variables.written(tensor, name)
        label = func._schema.name.rpartition("::")[2].removeprefix("npu_")
        self.tape.note("made", result=self.variables.bound(result, label))


def _written(func: Any, args: Any, kwargs: Any) -> list[torch.Tensor]:  # noqa: ANN401
    """Return the tensors that a call writes into, as its schema says."""
    found: list[torch.Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += tensors_in(value)
    return found


def _draws(func: Any) -> bool:  # noqa: ANN401
    """Whether a call's result is random numbers, and not something computed from its arguments."""
    schema = func._schema
    if torch.Tag.nondeterministic_seeded not in func.tags or func.namespace != "aten":
        return False
    takes = [argument.name for argument in schema.arguments]
    tensors = any("Tensor" in str(argument.type) for argument in schema.arguments)
    return "generator" in takes or not tensors or schema.name.endswith("_like")
