"""Head dims as one axis: keys and values may differ, and only some pairs exist."""

from __future__ import annotations


def join_head_dims(head_dim: int, value_head_dim: int) -> str:
    """``128`` when both agree, else ``192/128``."""
    return str(head_dim) if head_dim == value_head_dim else f"{head_dim}/{value_head_dim}"


def split_head_dims(text: str) -> tuple[int, int]:
    """Read ``128`` or ``192/128``; raises ``ValueError`` for anything else."""
    first, _, second = str(text).partition("/")
    return int(first), int(second or first)
