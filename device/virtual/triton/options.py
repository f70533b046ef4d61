"""Options that only an NPU's Triton has: they say how to compile, and do nothing here."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any

import triton
import triton.language as tl

_OF_LOADS = ("care_padding",)


def install() -> None:
    """Have Triton take them, at loads and in configurations of its autotuner."""
    own = triton.Config.__init__
    known = set(inspect.signature(own).parameters)

    @wraps(own)
    def configured(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as triton.Config has them
        own(self, *args, **{name: value for name, value in kwargs.items() if name in known})

    triton.Config.__init__ = configured
    load = tl.core.load

    @wraps(load)
    def loaded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as tl.load has them
        return load(*args, **{name: value for name, value in kwargs.items() if name not in _OF_LOADS})

    tl.load = tl.core.load = loaded
