"""Putting it into Triton: who has imported this module's Triton has an interpreter that knows the device."""

from __future__ import annotations

from functools import cache

import triton.runtime.interpreter as triton_interpreter

from npudiff.device.virtual.triton import blocks, driver, extension, launch, options, values


@cache
def install() -> None:
    """Change Triton's interpreter. Idempotent."""
    builder = values.Builder()
    triton_interpreter.interpreter_builder = builder
    triton_interpreter.interpreter_semantic = blocks.Semantic(builder)
    triton_interpreter._get_np_dtype = values.numpy_dtype
    triton_interpreter.ReduceOps, triton_interpreter.ScanOps = values.Reduction, values.Scan
    triton_interpreter.GridExecutor = launch.Launch
    triton_interpreter.InterpretedFunction.__call__ = launch.call_function
    blocks.install()
    options.install()
    extension.install()
    driver.install()
