"""Quirks: what some CANN version does, or is reported to do, that the contract does not say.

A quirk is a small function at a named hook. ``on_request`` sees the whole call before anything is computed;
``on_visibility`` sees what one sequence may look at. Both return what the kernel shall use instead, so no
kernel knows any quirk by name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from npudiff.device.simulator.fused_attention.request import FusedAttentionRequest
    from npudiff.device.simulator.fused_attention.visibility import Visibility


@dataclass(frozen=True)
class Quirk:
    """One deviation from the contract."""

    name: str
    """Short name, for messages and reports."""
    source: str
    """Link to the report or document that is the reason."""
    on_request: Callable[[FusedAttentionRequest], FusedAttentionRequest] | None = None
    """Hook ``request -> request``, after the checks and before the computation."""
    on_visibility: Callable[[FusedAttentionRequest, Visibility], Visibility] | None = None
    """Hook ``(request, visibility) -> visibility``, once per sequence."""


# Positions up to here honour the mask in the report; 512 is also the width of the kernel's key tile.
_LAST_HONOURED_POSITION = 512


def _forget_mask_past_512(request: FusedAttentionRequest, visibility: Visibility) -> Visibility:
    """Show every key from position 512 on, when a decode's mask is [1, 1, 1, S].

    Reported for the first operator, sparse mode 0 and a bool mask: length 512 is right and 513 is wrong.
    https://github.com/vllm-project/vllm-ascend/issues/15503
    """
    mask = request.mask
    concerned = (
        mask is not None
        and visibility.mask is not None
        and request.sparse_mode == 0
        and mask.dim() == 4
        and tuple(mask.shape[:3]) == (1, 1, 1)
        and mask.shape[3] > _LAST_HONOURED_POSITION
    )
    if not concerned or visibility.mask is None:
        return visibility
    forgetful = visibility.mask.clone()
    forgetful[..., _LAST_HONOURED_POSITION:] = False
    return replace(visibility, mask=forgetful)


def _average_without_mask(request: FusedAttentionRequest) -> FusedAttentionRequest:
    """Weigh all keys alike, in TND with sparse mode 0 and no mask.

    Equal weights are what scores of zero give, so the scale is dropped.
    https://github.com/vllm-project/vllm-ascend/issues/13699
    """
    if request.layout == "TND" and request.sparse_mode == 0 and request.mask is None:
        return replace(request, scale=0.0)
    return request


DECODE_MASK_ENDS_AT_512 = Quirk(
    name="decode_mask_ends_at_512",
    source="https://github.com/vllm-project/vllm-ascend/issues/15503",
    on_visibility=_forget_mask_past_512,
)

TND_WITHOUT_MASK_AVERAGES = Quirk(
    name="tnd_without_mask_averages",
    source="https://github.com/vllm-project/vllm-ascend/issues/13699",
    on_request=_average_without_mask,
)
