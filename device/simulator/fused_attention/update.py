"""``npu_attention_update``: merge attention over parts of the keys, weighted by the parts' log-sum-exps.

Sources: its documentation (DOC), op-plugin's host code, CANN's checks (``aclnn_attention_update.cpp``) and kernel for
A2 and A3 (``decode_update.h``): all in float32, sums in the order of the list, one final cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from npudiff.device.simulator.profiles import CannProfile

_CHECK = ArgumentChecks("npu_attention_update", default=ErrorCode.PARAMETER)

_HEAD_DIM_STEP = 8
_MAX_HEAD_DIM = 512


def attention_update(
    lse: Sequence[Tensor], local_out: Sequence[Tensor], update_type: int
) -> tuple[Tensor, Tensor | None]:
    """Merge parts, which have weights ``exp(lse_i - logsumexp(lse))``.

    Parameters
    ----------
    lse : sequence of Tensor
        float32 [rows] per part. -inf, and +inf unless the profile says otherwise, is a part that is absent.
    local_out : sequence of Tensor
        [rows, D] per part; float32, float16 or bfloat16. D is a multiple of 8 up to 512. An absent part is multiplied
        by 0, so that NaN in it reaches the result.
    update_type : int
        1 if the merged log-sum-exp is wanted, else 0.

    Returns
    -------
    out : Tensor
        [rows, D] in the dtype of the parts; NaN in rows that no part has.
    lse_out : Tensor or None
        float32 [rows], with update type 1 only.

    Raises
    ------
    OperatorRejected
        Lists of other lengths, shapes or dtypes, or another update type.
    """
    profile = active_profile()
    _check(lse, local_out, update_type, profile)
    logs = torch.stack(tuple(lse))
    if profile.attention_update_positive_infinity == "absent":
        logs = logs.masked_fill(logs == torch.inf, -torch.inf)
    maximum = logs.amax(0)
    total = _in_order((logs - maximum).exp())
    merged = maximum + total.log()
    weights = (logs - merged).exp()
    parts = torch.stack([part.float() for part in local_out])
    out = _in_order(parts * weights.unsqueeze(-1)).to(local_out[0].dtype)
    return out, merged if update_type else None


def _in_order(parts: Tensor) -> Tensor:
    """Sum over the first axis from its first element to its last, rounding each time."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def attention_update_meta(
    lse: Sequence[Tensor], local_out: Sequence[Tensor], update_type: int
) -> tuple[Tensor, Tensor]:
    """Return the shapes; META has a log-sum-exp for both update types."""
    del update_type
    return torch.empty_like(local_out[0]), torch.empty_like(lse[0])


def _check(lse: Sequence[Tensor], local_out: Sequence[Tensor], update_type: int, profile: CannProfile) -> None:
    _CHECK.choice("update_type", update_type, (0, 1))
    if not 0 < len(lse) <= profile.attention_update_parts:
        raise _CHECK.rejected("lse", f"{len(lse)} tensors", f"1 to {profile.attention_update_parts}")
    if len(local_out) != len(lse):
        raise _CHECK.rejected("local_out", f"{len(local_out)} tensors", f"{len(lse)}, as many as lse")
    _CHECK.rank("lse", lse[0], 1, "[rows]")
    _CHECK.rank("local_out", local_out[0], 2, "[rows, D]")
    for log, part in zip(lse, local_out, strict=True):
        _CHECK.dtype("lse", log, "float32")
        _CHECK.dtype("local_out", part, *FLOATS)
        _CHECK.same_dtype("local_out", part, "local_out[0]", local_out[0])
        _CHECK.shape("lse", log, lse[0].shape, meaning="as lse[0]")
        _CHECK.shape(
            "local_out", part, (len(lse[0]), local_out[0].shape[1]), meaning="[rows of lse, D of local_out[0]]"
        )
    width = local_out[0].shape[1]
    if not 0 < width <= _MAX_HEAD_DIM or width % _HEAD_DIM_STEP:
        allowed = f"a multiple of {_HEAD_DIM_STEP} up to {_MAX_HEAD_DIM}"
        raise _CHECK.rejected("local_out", f"of head dim {width}", allowed)
