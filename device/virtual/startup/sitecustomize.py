"""Found first on ``PYTHONPATH`` by what ``npudiff virtual`` runs: the virtual NPU is there when torch_npu is imported.

Python runs this file when it starts. It only looks out for the import of torch_npu, which torch does by itself, so that
a program that uses neither pays nothing.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


class _Lookout:
    """Puts the virtual NPU under the first import of torch_npu, and is gone."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Load the stand-in for CANN, and have operators registered once torch_npu has been executed."""
        del path, target
        if name != "torch_npu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        from npudiff.device.virtual import VirtualNpuUnavailable, enable  # noqa: PLC0415 - when it is needed
        from npudiff.device.virtual.loading import stand_in, without_the_word_that_cann_is_missing  # noqa: PLC0415

        try:
            stand_in()
        except VirtualNpuUnavailable as error:
            raise ImportError(f"npudiff virtual: {error}", name=name) from error
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            with without_the_word_that_cann_is_missing():
                execute(module)
            enable()

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


def _run_the_next() -> None:
    """Run the ``sitecustomize`` that this one stands before, if there is one."""
    here = str(Path(__file__).resolve().parent)
    paths = [entry for entry in sys.path if str(Path(entry or ".").resolve()) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _Lookout())
_run_the_next()
