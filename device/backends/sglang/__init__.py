"""sglang's Ascend backend, from the installed package or from a checkout."""

from __future__ import annotations

from pathlib import Path

from npudiff.device.backends import NOT_HERE
from npudiff.model.backend import Backend, Booted


def _boot(checkout: Path | None) -> Booted:
    from npudiff.device.backends.sglang import boot  # noqa: PLC0415 - whoever only lists backends imports nothing

    return boot.boot(checkout)


BACKEND = Backend(
    name="sglang",
    summary="attention, caches, norms, rotary embedding, routing and experts of sglang's Ascend backend",
    boot=_boot,
    implementations=__name__,
    absent=NOT_HERE,
)
