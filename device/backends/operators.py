"""Which NPU operators the sources of a backend call, and which of them the virtual NPU has no kernel for."""

from __future__ import annotations

from pathlib import Path


def operators_of(folder: Path) -> list[str]:
    """Return lines about the operators that are called below a folder, whose files are read and not imported."""
    from npudiff.device.contract.trees import report  # noqa: PLC0415 - only for whoever asks

    return [line for line in report(folder) if " have a kernel" in line or line.startswith("no kernel")]
