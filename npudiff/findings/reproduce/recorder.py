"""The recorder: it writes every operator call down, as torch's dispatcher sees it, on a tape.

The inside of an operator is not seen, whether the operator runs on a device or is simulated. An event of the tape is a
line of plain values; the bytes of tensors lie beside. Both are files without a name, which outlive the process that
writes them. A call is written down before it is made, so that one that kills its process is the last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import keyword
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from npudiff.findings.reproduce.script import Event
from npudiff.model.operators import tensors_in
from npudiff.model.red_zones import ONES, UNWRITTEN


class Refused(Exception):
    """Something cannot stand in a script; the message says what, and is read after "no script: "."""


_NAMED = {torch.dtype: "dtype", torch.device: "device", torch.layout: "layout", torch.memory_format: "memory format"}


def plain(value: object, tensor: Callable[[torch.Tensor], Any], storage: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    """Return an argument as a value that JSON can hold.

    Parameters
    ----------
    value : object
        What the dispatcher was given.
    tensor, storage : callable
        Say what stands for a tensor, or for a storage by itself.

    Raises
    ------
    Refused
        If no script can hold it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return tensor(value)
    if isinstance(value, list | tuple):
        return [plain(item, tensor, storage) for item in value]
    if isinstance(value, torch.UntypedStorage | torch.TypedStorage):
        return storage(value)
    for kind, name in _NAMED.items():
        if isinstance(value, kind):
            return {name: str(value)}
    if isinstance(value, torch.Generator):
        raise Refused("an operator is given a random generator, whose numbers are others on another device")
    raise Refused(f"an operator is given a {type(value).__name__}")


Key = tuple[object, ...]

_MOST_SEALED = 2**26
"""Bytes of a memory that is looked at before each call."""


def key_of(tensor: torch.Tensor) -> Key:
    """What is alike for tensors that are the same elements in the same order."""
    lies = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
    return (tensor.untyped_storage()._cdata, tensor.dtype, *lies)


def place(tensor: torch.Tensor) -> dict[str, Any]:
    """Return where the elements of a tensor are in its memory."""
    return {"shape": list(tensor.shape), "stride": list(tensor.stride()), "offset": tensor.storage_offset()}


def described(tensor: torch.Tensor) -> dict[str, Any]:
    """Return what is said of a tensor beside its name."""
    return {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "device": str(tensor.device)}


def check_kind(tensor: torch.Tensor) -> None:
    """Raise ``Refused`` for a tensor that is more than elements at a place in memory."""
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise Refused(f"an operator is given a {type(tensor).__name__}, which makes calls of its own")
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
        raise Refused(f"an operator is given a tensor that is not strided: {tensor.layout}, {tensor.dtype}")
    if tensor.is_conj() or tensor.is_neg():
        raise Refused("an operator is given a conjugate or negative that torch has not computed yet")


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all bytes of the storage of a tensor, on the host."""
    if tensor.device.type != "cpu":
        count = tensor.untyped_storage().nbytes() // tensor.itemsize
        tensor = torch.as_strided(tensor.detach(), (count,), (1,), 0).cpu()
    return torch.empty(0, dtype=torch.uint8).set_(tensor.detach().untyped_storage())


def checksum(tensor: torch.Tensor) -> int | None:
    """Return a number that changes when the memory of a tensor does; None where it is large, or cannot be read."""
    if tensor.untyped_storage().nbytes() > _MOST_SEALED:
        return None
    try:
        return zlib.crc32(whole(tensor).numpy().data)
    except RuntimeError:  # a device may have a format of which no other view can be read
        return None


def labelled(value: object, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of (nested) dataclasses, mappings and lists with the names of their places."""
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided:
            yield name or "given", value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from labelled(getattr(value, field.name), f"{name}_{field.name}" if name else field.name)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from labelled(item, f"{name}_{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from labelled(item, f"{name}_{number}")


MOST_BYTES = 2**27
"""Bytes of tensors on a tape. A script has fewer: what only judges a result on the way there is taken out."""

MOST_EVENTS = 20_000


class Tape:
    """A recording that is being made, or has been made.

    Attributes
    ----------
    refusal : str
        Why nothing more is recorded; empty if all is well.
    """

    def __init__(self) -> None:
        self._lines = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the tape is
        self._bytes = tempfile.TemporaryFile()  # noqa: SIM115
        self._size = self._count = 0
        self.refusal = ""

    def close(self) -> None:
        """Let go of the files."""
        self._lines.close()
        self._bytes.close()

    @property
    def written(self) -> int:
        """Bytes of lines that were written, by whichever process."""
        return os.fstat(self._lines.fileno()).st_size

    def note(self, kind: str, **said: Any) -> None:  # noqa: ANN401 - plain values of any event
        """Write a line; it is with the system when this returns."""
        if self.refusal:
            return
        self._count += 1
        if self._count > MOST_EVENTS:
            self.refuse(f"it makes more than {MOST_EVENTS:,} calls")
            return
        self._line({"kind": kind, **said})

    def refuse(self, why: str) -> None:
        """Say why there is no recording; nothing is written after it."""
        if not self.refusal:
            self.refusal = why
            self._line({"kind": "refused", "why": why})

    def keep(self, content: memoryview) -> int:
        """Write bytes, and return where they begin; 0 once there are too many."""
        start = self._size
        if start + content.nbytes > MOST_BYTES:
            self.refuse(f"the tensors of its calls have more than {MOST_BYTES >> 20} MiB")
            return 0
        self._size += content.nbytes
        self._bytes.write(content)
        self._bytes.flush()
        return start

    def _line(self, event: Event) -> None:
        self._lines.write(json.dumps(event).encode() + b"\n")
        self._lines.flush()

    def events(self) -> list[Event]:
        """Return all that was written; of a process that was killed while it wrote, all but the last line."""
        self._lines.seek(0)
        lines = self._lines.read().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def content(self, start: int, count: int) -> bytes:
        """Return bytes that were kept."""
        self._bytes.seek(start)
        return self._bytes.read(count)


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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Whether torch has to keep its compiler out of here: it would import it for that, which takes two seconds.

        An implementation that is compiled has imported it before anything of it is recorded.
        """
        return "torch._dynamo" in sys.modules

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
            if func._opname in UNWRITTEN:
                self._mark(result)
            self._after(func, (args, kwargs), result, written)
        return result

    def _mark(self, result: torch.Tensor) -> None:
        """Fill memory that nobody has written: it may hold, by chance, what is written past the dispatcher next."""
        with self._guarded():
            storage = result.untyped_storage()
            torch.empty(0, dtype=torch.uint8, device=result.device).set_(storage).fill_(ONES)

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
