"""A launch of a kernel: on the memory of device tensors, at once or when the turn of its stream comes."""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, InterpretedFunction

from npudiff.device.virtual import faults, tasks

_one_at_a_time = threading.RLock()
"""Triton's interpreter replaces functions of its language while a kernel runs."""

_LANGUAGE = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
"""What a kernel and the functions that it calls may know the language as."""


class Launch(GridExecutor):
    """A kernel and its grid. Nothing is copied: addresses are those of device tensors."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Run the kernel once per program of the grid.

        Keywords that the kernel has not are options of a compiler (``num_warps``, ``multibuffer``): they do nothing.

        Raises
        ------
        ValueError
            If an argument is a tensor of the host.
        InterpreterError
            If the kernel fails.
        """
        name = f"triton::{self.fn.__name__}"
        known = inspect.signature(self.fn).parameters
        kwargs = {key: value for key, value in kwargs.items() if key in known}
        for hook in self.pre_run_hooks:
            hook(*args, **kwargs)
        given = inspect.getcallargs(self.fn, *args, **kwargs)
        tensors = [(key, tensor) for key, value in given.items() for tensor in _tensors(value)]
        for key, tensor in tensors:
            if tensor.device.type != "npu":
                raise ValueError(f"{name}: {key} is a tensor of {tensor.device}, which the device cannot read")
        grid = self.grid(given) if callable(self.grid) else self.grid
        programs = [int(size) for size in (grid if isinstance(grid, Sequence) else (grid,))]
        converted = {
            key: value if key in self.constexprs else interpreter._implicit_cvt(value) for key, value in given.items()
        }
        run = partial(_run, self.fn, converted, [*programs, 1, 1][:3])
        if not tasks.recording():
            faults.before(name)
            run()
            return
        memory = {(one.untyped_storage().data_ptr(), one.untyped_storage().nbytes()) for _, one in tensors}
        tasks.launch(name, partial(_run_on, memory, run))


def call_function(function: InterpretedFunction, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Call a function that a kernel calls: the language is there already, of the kernel that is running."""
    return function.rewrite()(*args, **kwargs)


def _run_on(memory: set[tuple[int, int]], run: Callable[[], None]) -> None:
    """Run a kernel that was captured, if its tensors' memory is still the device's."""
    if not all(tasks.is_allocated(*one) for one in memory):
        raise RuntimeError("memory that was there at the capture has been freed")
    run()


def _run(function: Callable[..., None], given: Mapping[str, Any], grid: Sequence[int]) -> None:
    with _one_at_a_time, _larger_and_smaller_blocks(), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a device says nothing of NaN
        builder = interpreter.interpreter_builder
        before = getattr(builder, "grid_dim", None), getattr(builder, "grid_idx", None)
        scope = interpreter._patch_lang(_LANGUAGE)
        try:
            builder.set_grid_dim(*grid)
            for place in np.ndindex(*grid):
                builder.set_grid_idx(*place)
                function(**given)
        except Exception as error:
            raise InterpreterError(f"{type(error).__name__}: {error}") from error
        finally:
            scope.restore()
            builder.grid_dim, builder.grid_idx = before


@contextlib.contextmanager
def _larger_and_smaller_blocks() -> Iterator[None]:
    """Let ``max`` and ``min`` of a kernel be those of elements, as its compiler has them; Python's compare blocks."""
    own = builtins.max, builtins.min
    builtins.max, builtins.min = _elementwise(own[0], "maximum"), _elementwise(own[1], "minimum")
    try:
        yield
    finally:
        builtins.max, builtins.min = own


def _elementwise(own: Callable[..., Any], of_two: str) -> Callable[..., Any]:
    def chosen(*values: Any, **named: Any) -> Any:  # noqa: ANN401 - as Python's function
        if any(isinstance(value, tl.tensor) for value in values):
            return functools.reduce(getattr(tl, of_two), values)
        return own(*values, **named)

    return chosen


def _tensors(value: Any) -> list[torch.Tensor]:  # noqa: ANN401 - any argument of a kernel
    """Return the tensors of an argument, which may be a tuple or a descriptor, or a tensor in another dtype."""
    if isinstance(value, (tuple, list)):
        return [tensor for one in value for tensor in _tensors(one)]
    inner = getattr(value, "base", None)  # of descriptors and wrappers
    if isinstance(value, torch.Tensor):
        return [value]
    return [inner] if isinstance(inner, torch.Tensor) else []
