"""``triton.language.extra.cann``: functions that an NPU's Triton has beside Triton's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import extra
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

from npudiff.device.virtual.triton import blocks

_NAME = "triton.language.extra.cann"

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "acos": np.arccos, "asin": np.arcsin, "atan": np.arctan, "atan2": np.arctan2, "ceil": np.ceil,
    "cos": np.cos, "cosh": np.cosh, "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "floor": np.floor,
    "fmod": np.fmod, "log": np.log, "log10": np.log10, "log1p": np.log1p, "log2": np.log2, "pow": np.power,
    "reciprocal": np.reciprocal, "relu": lambda x: np.maximum(x, 0), "rint": np.rint,
    "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "sinh": np.sinh, "sqrt": np.sqrt, "tan": np.tan,
    "tanh": np.tanh, "trunc": np.trunc,
}  # fmt: skip
"""Functions of ``libdevice``, by their names there."""


def _elementwise(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **_: object) -> Any:  # noqa: ANN401 - tl.tensor
        semantic = interpreter.interpreter_semantic
        first, *others = (semantic.to_tensor(argument) for argument in arguments)
        for index, other in enumerate(others):
            first, others[index] = semantic.broadcast_impl_value(first, other)
        values = [one.handle.data for one in (first, *others)]
        wide = [value if value.dtype == np.float64 else value.astype(np.float32) for value in values]
        return tl.tensor(TensorHandle(function(*wide).astype(values[0].dtype), first.dtype), first.type)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"Return ``{name}`` of elements, computed in float32 and rounded once; float64 stays."
    return call


def install() -> None:
    """Make the modules importable, unless the installed Triton has its own."""
    if _NAME in sys.modules:
        return
    cann, extension, libdevice = ModuleType(_NAME), ModuleType(f"{_NAME}.extension"), ModuleType(f"{_NAME}.libdevice")
    cann.__path__ = []
    for function in (blocks.extract_slice, blocks.insert_slice, blocks.get_element, blocks.parallel):
        setattr(extension, function.__name__, function)
    for name, elementwise in _ELEMENTWISE.items():
        setattr(libdevice, name, _elementwise(name, elementwise))
    for module in (cann, extension, libdevice):
        sys.modules[module.__name__] = module
    cann.extension, cann.libdevice = extension, libdevice  # type: ignore[attr-defined]
    extra.cann = cann
    if not hasattr(tl, "parallel"):
        tl.parallel = blocks.parallel
