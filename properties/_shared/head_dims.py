"""Head dims as one axis: keys and values may differ, and only some pairs exist."""

from __future__ import annotations

from collections.abc import Iterator

from npudiff.model.constraints import Joined
from npudiff.reference.cache_layout import CacheLayout

HEAD_DIMS = Joined((range(1, 2**16 + 1), range(1, 2**16 + 1)), short=True)
"""Every head dim of keys and values: ``128`` or ``192/128``."""


def join_head_dims(head_dim: int, value_head_dim: int) -> str:
    """``128`` when both agree, else ``192/128``."""
    return str(head_dim) if head_dim == value_head_dim else f"{head_dim}/{value_head_dim}"


def split_head_dims(text: str) -> tuple[int, int]:
    """Read ``128`` or ``192/128``; raises ``ValueError`` for anything else."""
    first, _, second = str(text).partition("/")
    return int(first), int(second or first)


def into_head_dims(text: str) -> dict[str, int]:
    """Return the fields of a case that keep head dims."""
    return dict(zip(("head_dim", "value_head_dim"), split_head_dims(text), strict=True))


def unfilled_strips(*layouts: CacheLayout) -> Iterator[str]:
    """Say why a cache cannot lie as its layout says, if it cannot: strips are not filled."""
    for layout in layouts:
        try:
            _ = layout.shape
        except ValueError as error:
            yield str(error)
