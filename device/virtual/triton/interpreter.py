"""Putting it into Triton: who has imported this module's Triton has an interpreter that knows the device."""

from __future__ import annotations

import inspect
import sys
from functools import cache

import triton.language.math as tl_math
import triton.runtime.interpreter as triton_interpreter
from triton.runtime.jit import mangle_type

from npudiff.device.virtual.triton import block_pointers, blocks, driver, extension, launch, loops, options, values


@cache
def install() -> None:
    """Change Triton's interpreter. Idempotent."""
    _know_types()
    _take_halves()
    builder = values.Builder()
    triton_interpreter.interpreter_builder = builder
    triton_interpreter.interpreter_semantic = blocks.Semantic(builder)
    triton_interpreter._get_np_dtype = values.numpy_dtype
    triton_interpreter.ReduceOps, triton_interpreter.ScanOps = values.Reduction, values.Scan
    triton_interpreter.GridExecutor = launch.Launch
    triton_interpreter.InterpretedFunction.__call__ = launch.call_function
    blocks.install()
    block_pointers.install()
    loops.install()
    options.install()
    extension.install()
    driver.install()


def _take_halves() -> None:
    """Let functions such as ``tl.exp`` take 16-bit floats, as the Triton of an NPU does."""
    for function in vars(tl_math).values():
        own = getattr(function, "__wrapped__", None)
        checked = inspect.getclosurevars(own).nonlocals.get("dtypes") if inspect.isfunction(own) else None
        if isinstance(checked, list):
            checked.extend(kind for kind in ("fp16", "bf16") if kind not in checked)


def _know_types() -> None:
    """Have Triton look up the types of arguments, which it does once, in modules that backends put empty ones for.

    An NPU's own Triton has no Gluon: vllm-ascend stands in for it before it imports Triton.
    """
    for name in [name for name in sys.modules if name.startswith("triton.experimental.gluon")]:
        if getattr(sys.modules[name], "__file__", None) is None:
            del sys.modules[name]
    mangle_type(0)
