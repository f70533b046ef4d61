"""The variables of a script that is being recorded: which tensor is called what, and which memory they share."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from npudiff.findings.reproduce.operands import Refused
from npudiff.findings.reproduce.tape import Tape
from npudiff.findings.reproduce.tensors import Key, check_kind, checksum, described, key_of, labelled, place, whole

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
