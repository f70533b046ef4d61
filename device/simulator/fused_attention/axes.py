"""Layout names of fused attention as axes: B, S, N, D; T for the tokens of packed sequences; H for N and D in one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How a layout name is read: the query's axes, the output's axes."""

    query: str
    output: str


LAYOUTS = {
    "BSH": Layout("BSH", "BSH"),
    "BSND": Layout("BSND", "BSND"),
    "BNSD": Layout("BNSD", "BNSD"),
    "TND": Layout("TND", "TND"),
    "NTD": Layout("NTD", "NTD"),
    "NSD": Layout("NSD", "NSD"),
    "BNSD_BSND": Layout("BNSD", "BSND"),
    "BSH_BNSD": Layout("BSH", "BNSD"),
    "BSND_BNSD": Layout("BSND", "BNSD"),
    "BSH_NBSD": Layout("BSH", "NBSD"),
    "BSND_NBSD": Layout("BSND", "NBSD"),
    "BNSD_NBSD": Layout("BNSD", "NBSD"),
    "TND_NTD": Layout("TND", "NTD"),
    "NTD_TND": Layout("NTD", "TND"),
}
"""Every name that the wrapper takes."""


def row_axis(axes: str) -> int:
    """Return the axis of tokens, which is T or S."""
    return axes.index("T" if "T" in axes else "S")
