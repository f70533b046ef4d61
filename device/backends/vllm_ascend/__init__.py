"""vllm-ascend, from the installed package or from a checkout, beside the vllm that is installed."""

from __future__ import annotations

from pathlib import Path

from npudiff.device.backends import NOT_HERE
from npudiff.model.backend import Backend, Booted


def _boot(checkout: Path | None) -> Booted:
    from npudiff.device.backends.vllm_ascend import boot  # noqa: PLC0415 - whoever only lists backends imports nothing

    return boot.boot(checkout)


BACKEND = Backend(
    name="vllm_ascend",
    summary="attention, caches, norms, rotary embedding, routers, experts, linear layers, activations of vllm-ascend",
    boot=_boot,
    implementations=__name__,
    absent=NOT_HERE,
)
