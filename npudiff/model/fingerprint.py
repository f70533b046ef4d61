"""A checksum per tensor of inputs, by which a write into them is seen."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def fingerprint(inputs: object, path: str = "") -> dict[str, int]:
    """Return a number per tensor of (nested) dataclass inputs that changes when the tensor is written to."""
    if hasattr(inputs, "untyped_storage"):
        return {path: _checksum(inputs)}
    if not dataclasses.is_dataclass(inputs):
        return {}
    parts = ((field.name, getattr(inputs, field.name)) for field in dataclasses.fields(inputs))
    return {
        name: digest
        for part, value in parts
        for name, digest in fingerprint(value, f"{path}.{part}" if path else part).items()
    }


_CHUNK = 4096
"""Words that are weighted alike in every chunk of a checksum."""


def _checksum(tensor: Any) -> int:  # noqa: ANN401 - a tensor; torch is imported by those who have one
    """Sum of all words of the storage, gaps between the rows of a view included, each weighted by its place.

    The weights are odd, so that no change of one word is lost, and all different, so that rows that change places are
    seen.
    """
    import torch  # noqa: PLC0415

    storage = tensor.detach().cpu().untyped_storage()
    bits = torch.empty(0, dtype=torch.uint8).set_(storage)
    words = bits[: len(bits) // 8 * 8].view(torch.int64)
    whole = len(words) // _CHUNK * _CHUNK
    total = torch.dot(words[whole:], _weights(_CHUNK)[: len(words) - whole])
    if whole:  # most tensors of a case are smaller, and each call counts there
        chunks = torch.mv(words[:whole].view(-1, _CHUNK), _weights(_CHUNK))
        total += torch.dot(chunks, _weights(whole // _CHUNK))
    if len(bits) % 8:
        total += bits[len(words) * 8 :].sum()
    return int(total)


@functools.lru_cache(maxsize=16)
def _weights(count: int) -> torch.Tensor:
    """Odd numbers without a pattern, always the same; products wrap around in 64 bits."""
    import torch  # noqa: PLC0415

    mixed = torch.arange(1, 1 + count) * 0x1E3779B97F4A7C15
    mixed = (mixed ^ (mixed >> 29)) * 0x3F58476D1CE4E5B9
    return (mixed ^ (mixed >> 32)) | 1
