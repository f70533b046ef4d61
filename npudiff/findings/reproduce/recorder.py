"""The recorder: it writes every operator call down, as torch's dispatcher sees it.

The inside of an operator is not seen, whether the operator runs on a device or is simulated. ``WatchedSubject`` is an
implementation whose calls are recorded while a property is checked.
"""

from __future__ import annotations

import contextlib
import keyword
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, cast

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from npudiff.findings.reproduce.tape import (
    Key,
    Refused,
    Tape,
    check_kind,
    checksum,
    described,
    key_of,
    labelled,
    place,
    plain,
    tensors_in,
    whole,
)
from npudiff.model.anything import AnyInputs
from npudiff.model.component import Answer, ExpectedOutput, Subject

RESERVED = ("torch", "run", "float", "getattr")
"""Names that a script has for something else."""


@dataclass
class Memory:
    """A storage that variables of the script share."""

    name: str
    """Its name in the script's file, and of the first variable."""
    alive: StorageWeakRef
    """Keeps its address from being used again, and not its bytes."""
    dtype: torch.dtype
    """Of the first variable."""
    loaded: bool
    """Whether it comes from outside."""
    derived: bool
    """Whether a recorded call has made it or written into it."""
    seal: int | None = None
    """Checksum of its bytes after the last recorded call that may have written into it; None if nobody looks."""


class Variables:
    """Names of tensors.

    They are told apart by the memory that they stand for and not by the object in Python: a view that torch makes on
    its own is the same tensor then.

    Parameters
    ----------
    tape : Tape
        Where tensors that come from outside are written down.
    sealed : bool
        Whether to look, when a tensor is used, if its memory was written to by anything that was not recorded.
    """

    def __init__(self, tape: Tape, *, sealed: bool) -> None:
        self._tape, self._sealed = tape, sealed
        self._inputs: list[tuple[str, torch.Tensor]] = []
        self._names: dict[Key, str] = {}
        self._memories: dict[int, Memory] = {}
        self._labels: dict[Key, str] = {}
        self._used: set[str] = set(RESERVED)

    def given(self, values: object) -> None:
        """Learn what the tensors of (nested) dataclass inputs are called, before a call gets them."""
        self._inputs = list(labelled(values, ""))
        self._labels = {key_of(tensor): name for name, tensor in self._inputs}

    def inputs(self) -> list[dict[str, Any]]:
        """Return the inputs of the last run that calls were given: labels, memories, and variables."""
        found = []
        for label, tensor in self._inputs:
            memory = self.memory(tensor)
            if memory is not None and memory.loaded:
                found.append({"name": label, "memory": memory.name, "tensor": self.reference(tensor)})
        return found

    def is_derived(self, tensor: torch.Tensor) -> bool:
        """Whether a recorded call has made a tensor, or written into its memory."""
        memory = self.memory(tensor)
        return memory is not None and memory.derived

    def reference(self, tensor: torch.Tensor) -> dict[str, Any]:
        """Return what stands for a tensor in the script; one that is not known yet comes from outside.

        Raises
        ------
        Refused
            If nothing can stand for it.
        """
        check_kind(tensor)
        memory, key = self.memory(tensor), key_of(tensor)
        if memory is not None and memory.seal is not None and memory.seal != checksum(tensor):
            raise Refused("something that is not an operator writes into its tensors: the host, or a kernel of its own")
        if memory is not None and key in self._names:
            return {"tensor": self._names[key]}
        if memory is None or memory.loaded:
            return {"tensor": self._loaded(tensor, self._labels.get(key, "constant"))}
        if tensor.dtype is not memory.dtype:
            raise Refused(f"a {tensor.dtype} lies in the memory of a {memory.dtype}, and no call has put it there")
        return {"view": memory.name, **place(tensor)}

    def kept(self, tensor: torch.Tensor, label: str, *, may_be_one: bool = False) -> dict[str, Any]:
        """Put a copy of a tensor beside the script, without what lies between its rows.

        Bounds may be one number everywhere, and that is kept then: most of data that is moved are 0.
        """
        if may_be_one and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            copy = tensor.flatten()[:1].clone().expand(tensor.shape)
        else:
            copy = tensor.detach().clone(memory_format=torch.contiguous_format)
        return {"tensor": self._loaded(copy, label)}

    def _loaded(self, tensor: torch.Tensor, label: str) -> str:
        """Make a variable of a tensor that comes from outside; its memory is kept when it is first seen."""
        name, memory = self.unused(label), self.memory(tensor)
        if memory is None:
            content = whole(tensor)
            at = self._tape.keep(content.numpy().data)
            memory = self._remembered(tensor, name, loaded=True)
            self.seal(tensor)
            self._tape.note("memory", name=name, at=at, bytes=content.numel())
        self._names[key_of(tensor)] = name
        self._tape.note("loaded", name=name, memory=memory.name, **{**described(tensor), **place(tensor)})
        return name

    def memory(self, tensor: torch.Tensor) -> Memory | None:
        """Return the memory of a tensor, if anything recorded lies in it."""
        if tensor.layout is not torch.strided:
            return None
        memory = self._memories.get(tensor.untyped_storage()._cdata)
        return None if memory is None or memory.alive.expired() else memory  # type: ignore[no-untyped-call]

    def _remembered(self, tensor: torch.Tensor, name: str, *, loaded: bool) -> Memory:
        storage = tensor.untyped_storage()
        alive = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        memory = Memory(name, alive, tensor.dtype, loaded, not loaded)
        self._memories[storage._cdata] = memory
        return memory

    def seal(self, tensor: torch.Tensor) -> None:
        """From here on the memory of a tensor must not change until a call writes into it."""
        memory = self.memory(tensor)
        if memory is not None and self._sealed:
            memory.seal = checksum(tensor)

    def copied(self, label: str, copy: torch.Tensor) -> str:
        """Name the copy of an output that is on the host, in memory of its own."""
        name = self.unused(label)
        self._remembered(copy, name, loaded=False)
        self.seal(copy)
        self._names[key_of(copy)] = name
        return name

    def unused(self, label: str) -> str:
        """Return a name that nothing has yet, made of a label that may be any text."""
        base = re.sub(r"\W", "_", label, flags=re.ASCII).strip("_").lower() or "tensor"
        base = f"a_{base}" if keyword.iskeyword(base) or not base[0].isalpha() else base
        name, number = base, 2
        while name in self._used:
            name, number = f"{base}_{number}", number + 1
        self._used.add(name)
        return name

    def storage(self, storage: Any) -> dict[str, Any]:  # noqa: ANN401 - typed or not
        """Return what stands for a storage by itself."""
        memory = self._memories.get(storage._cdata)
        if memory is None:
            raise Refused("an operator is given a storage that no call has made")
        return {"storage": memory.name}

    def written(self, tensor: torch.Tensor, name: str | None) -> None:
        """A call has written into a tensor, which was called so before; it may have another shape now."""
        memory = self.memory(tensor)
        if memory is not None:
            memory.derived = True
        if name is not None and self._names.get(key_of(tensor)) != name:
            self._names = {key: other for key, other in self._names.items() if other != name}
            self._names[key_of(tensor)] = name

    def bound(self, result: object, hint: str) -> Any:  # noqa: ANN401 - a plain value
        """Name the results of a call; None for what has a name already, or needs none."""
        if isinstance(result, list | tuple):
            return [self.bound(item, hint) for item in result]
        if not isinstance(result, torch.Tensor):
            return None
        check_kind(result)
        memory, key = self.memory(result), key_of(result)
        if memory is not None and key in self._names:
            return None
        name = self.unused(hint)
        if memory is None:
            memory = self._remembered(result, name, loaded=False)
            self.seal(result)
        self._names[key] = name
        return {"name": name, "memory": memory.name, **described(result)}


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

    def fetched(self, label: str, tensor: torch.Tensor, copy: torch.Tensor) -> None:
        """Note an output of a run, and its copy on the host."""
        with self._guarded():
            if self.variables.is_derived(tensor) and not self.tape.refusal:
                said = self.variables.reference(tensor)
                self.tape.note("fetched", name=self.variables.copied(label, copy), of=said)

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
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
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


@dataclass(frozen=True)
class WatchedSubject(Subject):
    """A subject whose calls are written down."""

    recorder: Recorder
    """Writes; it must be entered."""
    expectations: list[Mapping[str, ExpectedOutput]]
    """What the reference said, each time that it was asked."""

    def call_guarded(self, question: Callable[[], Answer], *given: object) -> Answer:
        """Write down what the question calls; what surrounds it is ours."""

        def watched() -> Answer:
            self.recorder.returned = False
            self.recorder.variables.given(given[0] if len(given) == 1 else list(given))
            self.recorder.tape.note("run")
            with self.recorder.at(Watching.EVERYTHING):
                answer = question()
            self.recorder.returned = True
            return answer

        with self.recorder.at(Watching.NOTHING):
            return super().call_guarded(watched, *given)

    def _taken_over(self, value: object, name: str) -> torch.Tensor:
        """Note that an output is copied to the host, which is no call of the implementation."""
        with self.recorder.at(Watching.NOTHING):
            copy = super()._taken_over(value, name)
            self.recorder.fetched(name, cast("torch.Tensor", value), copy)
        return copy

    def fresh(self) -> Subject:
        """What an implementation makes to keep between calls is made by calls too."""
        with self.recorder.at(Watching.EVERYTHING):
            return super().fresh()

    def expected(self, inputs: AnyInputs) -> Mapping[str, ExpectedOutput]:
        """Write down nothing of the reference: its values are stored."""
        with self.recorder.at(Watching.NOTHING):
            expected = super().expected(inputs)
        self.expectations.append(expected)
        return expected
