"""Messages between a run and its workers: JSON, and tensors in shared memory."""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from npudiff.model.component import Comparison, OutputComparison

_ALIGNED = 64
_TENSORS = ("ratio", "actual", "value", "bound", "gain", "most_gain")


class SharedTensors:
    """Memory that two processes share, and that is gone when both are.

    It is a file without a name: no process can leave it behind, however it ends.
    """

    def __init__(self) -> None:
        self._file = os.memfd_create("npudiff", os.MFD_CLOEXEC)

    def write(self, tensors: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
        """Write tensors one after the other; return where each is, as plain values."""
        places: list[dict[str, Any]] = []
        end = 0
        for tensor in tensors:
            places.append({"dtype": str(tensor.dtype)[len("torch.") :], "shape": list(tensor.shape), "at": end})
            end += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
        os.ftruncate(self._file, end)
        if end:
            with mmap.mmap(self._file, end) as memory:
                for tensor, place in zip(tensors, places, strict=True):
                    _bytes_of(memory, tensor.numel() * tensor.element_size(), place["at"]).copy_(flat_bytes(tensor))
        return places

    def read(self, places: Sequence[Mapping[str, Any]]) -> list[torch.Tensor]:
        """Return copies of what was written, and give the memory back."""
        size = os.fstat(self._file).st_size
        tensors = []
        if size:
            with mmap.mmap(self._file, size) as memory:
                for place in places:
                    tensor = torch.empty(place["shape"], dtype=getattr(torch, place["dtype"]))
                    count = tensor.numel() * tensor.element_size()
                    flat_bytes(tensor).copy_(_bytes_of(memory, count, place["at"]))
                    tensors.append(tensor)
        else:
            tensors = [torch.empty(place["shape"], dtype=getattr(torch, place["dtype"])) for place in places]
        os.ftruncate(self._file, 0)
        return tensors

    def close(self) -> None:
        """Let go of the memory."""
        os.close(self._file)


def flat_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, uint8; those of itself where it is contiguous."""
    dense = tensor.detach().contiguous()
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)  # one element may have any stride


def _bytes_of(memory: mmap.mmap, count: int, at: int) -> torch.Tensor:
    if not count:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(memory, dtype=torch.uint8, count=count, offset=at)


def pack_comparison(comparison: Comparison, shared: SharedTensors) -> dict[str, Any]:
    """Return a comparison as plain values; its tensors go into shared memory."""
    tensors: list[torch.Tensor] = []
    outputs = []
    for output in comparison.outputs:
        plain: dict[str, Any] = {"name": output.name, "problem": output.problem}
        for name in _TENSORS:
            tensor = getattr(output, name)
            if tensor is not None:
                plain[name] = len(tensors)
                tensors.append(tensor)
        outputs.append(plain)
    return {"context": comparison.context, "outputs": outputs, "tensors": shared.write(tensors)}


def unpack_comparison(plain: Mapping[str, Any], shared: SharedTensors) -> Comparison:
    """Return the comparison that was packed."""
    tensors = shared.read(plain["tensors"])
    fields = {field.name for field in dataclasses.fields(OutputComparison)}
    outputs = (
        OutputComparison(
            **{name: tensors[value] if name in _TENSORS else value for name, value in output.items() if name in fields}
        )
        for output in plain["outputs"]
    )
    return Comparison(tuple(outputs), plain["context"])
