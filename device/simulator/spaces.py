"""Namespaces of operators that say which operator is missing, and why: there is no listing of all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import _OpNamespace

from npudiff.device.simulator.errors import OperatorMissing

_WHOSE = {
    "npu": "neither torch_npu nor the simulator has defined it",
    "atb": "neither torch_npu nor the simulator has defined it",
    "_C_ascend": "it is vllm-ascend's own, and its library is not loaded",
}
"""Namespaces, and what it means that one of their operators is not there."""


class _Space(_OpNamespace):
    """A namespace of ``torch.ops``."""

    def __getattr__(self, op_name: str) -> Any:  # noqa: ANN401 - torch._ops.OpOverloadPacket
        try:
            return super().__getattr__(op_name)
        except AttributeError as error:
            if op_name.startswith("__"):
                raise
            raise OperatorMissing(f"{self.name}::{op_name}", _WHOSE[self.name]) from error


def name_what_is_missing() -> None:
    """Have ``torch.ops`` raise :class:`OperatorMissing` for operators that nobody has defined. Idempotent."""
    for name in _WHOSE:
        getattr(torch.ops, name).__class__ = _Space
