"""Operators that the CPU lacks in 16 bits: they compute in float32, and round once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from npudiff.device.virtual.calls import Signature

_HALVES = (torch.float16, torch.bfloat16)
_LACKS = re.compile(r"not implemented for '(Half|BFloat16)'")


def lacks_dtype(error: Exception) -> bool:
    """Whether the CPU has an operator, but not in 16 bits."""
    return _LACKS.search(str(error)) is not None


def in_float32(
    signature: Signature, overload: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:  # noqa: ANN401 - of an operator
    """Run an operator on float32 copies of its 16-bit tensors; what it writes and returns has their dtype again."""
    wide: dict[int, tuple[Tensor, Tensor]] = {}

    def widened(value: Any) -> Any:  # noqa: ANN401 - of an operator
        if isinstance(value, Tensor) and value.dtype in _HALVES:
            return wide.setdefault(id(value), (value, value.float()))[1]
        if isinstance(value, (list, tuple)):
            return type(value)([widened(one) for one in value])
        return value

    given = [widened(value) for value in args]
    named = {name: widened(value) for name, value in kwargs.items()}
    dtype = next(value.dtype for value, _ in wide.values())
    asked = kwargs.get("dtype")
    if asked in _HALVES:
        named["dtype"] = torch.float32
    result = overload(*given, **named)
    values = dict(zip(signature.arguments, args, strict=False)) | dict(kwargs)
    for name in signature.written:
        for value in values[name] if isinstance(values.get(name), (list, tuple)) else (values.get(name),):
            if isinstance(value, Tensor) and id(value) in wide:
                computed = wide[id(value)][1]
                (value if value.shape == computed.shape else value.resize_(computed.shape)).copy_(computed)
    originals = {id(copy): value for value, copy in wide.values()}

    def narrowed(value: Any) -> Any:  # noqa: ANN401 - of an operator
        if isinstance(value, Tensor) and value.dtype == torch.float32 and asked in (None, *_HALVES):
            return originals.get(id(value), value.to(asked or dtype))
        if isinstance(value, (list, tuple)):
            return type(value)([narrowed(one) for one in value])
        return value

    return narrowed(result)
