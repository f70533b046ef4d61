"""``npu_grouped_matmul`` in both overloads: rows of several experts, each by its own weight.

Sources: see ``choices``. Rows behind the last group are not written, as production knows: expert parallelism gives
totals below the number of rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from npudiff.device.simulator.argument_checks import FLOATS, dtype_name
from npudiff.device.simulator.grouped_matmul.checks import check, check_host
from npudiff.device.simulator.grouped_matmul.groups import COUNTS, from_ends, read_groups
from npudiff.device.simulator.grouped_matmul.products import product
from npudiff.device.simulator.grouped_matmul.request import (
    CHECK,
    INNER,
    ONE_EACH,
    GroupedRequest,
    output_shapes,
)
from npudiff.device.simulator.grouped_matmul.scenarios import Part, kernel
from npudiff.device.simulator.norms.unwritten import POISON_BYTE, unwritten
from npudiff.device.simulator.profiles import CannProfile, active_profile

if TYPE_CHECKING:
    import torch


def grouped_matmul(request: GroupedRequest) -> list[Tensor]:
    """Multiply rows of each group by its weight, in both overloads.

    An int32 x holds eight int4 along K, and an int32 weight along N. ``bias``, ``scale`` and what else belongs to
    weights are [E, N] with a weight [E, K, N], and lists of [N] with several. ``group_list`` int64 [E] has the ends of
    the groups (``group_list_type`` 0) or their rows (1), [E, 2] pairs of expert and rows (2). ``group_type`` 0: rows
    are grouped; 2: the inner axis of x, a transposed view, and of the only weight [K, N]; -1: there are no groups.
    ``output_dtype`` is a number; None means the dtype of x. The overload List has the ends of groups on the host, and
    gives one output per group with ``split_item`` 0 and 1.

    Returns
    -------
    list of Tensor
        One for each x with ``split_item`` 0 and 1, one for all with 2 and 3: [M, N], or [E, M, N] where the
        inner axis is grouped.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        Activations, and what :mod:`checks` and :mod:`scenarios` name.
    DeviceFault, UndefinedBehaviour
        Groups that are none.
    """
    profile = active_profile()
    check(request)
    if request.group_type == INNER and request.group_list is not None:
        return [_inner_groups(request, request.group_list, profile)]
    run = kernel(request, profile)
    parts = _parts(request, profile)
    if request.split_item in ONE_EACH:
        shapes = output_shapes(request)
        return [run(part).view(shape) for part, shape in zip(parts, shapes, strict=True)]
    output = unwritten(output_shapes(request)[0], request.dtype)
    offsets = [0]
    for x in request.x:
        offsets.append(offsets[-1] + len(x))
    for part in parts:
        first = offsets[part.number]
        output[first + part.start : first + part.stop] = run(part)
    if _is_a8w4(request) and profile.gmm_a8w4_x == "overwritten":
        request.x[0].fill_(POISON_BYTE)
    return [output]


def grouped_matmul_meta(request: GroupedRequest) -> list[Tensor]:
    """Allocate the outputs, after the checks of the host."""
    check_host(request)
    return [request.x[0].new_empty(shape, dtype=request.dtype) for shape in output_shapes(request)]


def _parts(request: GroupedRequest, profile: CannProfile) -> list[Part]:
    """Return which rows of which x meet which weight."""
    length = len(request.x[0])
    if request.group_ends is not None:
        groups = from_ends(list(request.group_ends))
    elif request.group_list is not None:
        as_counts = _is_a8w4(request) and profile.gmm_a8w4_group_list == "counts"
        kind = COUNTS if as_counts else request.group_list_type
        groups = read_groups(CHECK, request.group_list, kind, request.experts, length)
    else:
        return [Part(number, number, 0, x.shape[:-1].numel()) for number, x in enumerate(request.x)]
    return [Part(group.expert, 0, group.start, group.stop) for group in groups]


def _is_a8w4(request: GroupedRequest) -> bool:
    return (dtype_name(request.x[0]), dtype_name(request.weight[0])) == ("int8", "int32")


def _inner_groups(request: GroupedRequest, group_list: Tensor, profile: CannProfile) -> Tensor:
    """Multiply columns of x by rows of the weight, group by group: [E, M, N]."""
    x, weight = request.x[0], request.weight[0]
    CHECK.dtype("x", x, *FLOATS)
    CHECK.dtype("weight", weight, dtype_name(x))
    for argument in ("bias", "scale", "offset", "antiquant_scale", "antiquant_offset", "per_token_scale"):
        if getattr(request, argument):
            raise CHECK.not_simulated(argument, "given with group_type 2", "None")
    _require_dtype_of_x(request, x.dtype)
    CHECK.dtype("group_list", group_list, "int64")
    shape = output_shapes(request)[0]
    output = unwritten(shape, x.dtype)
    if profile.gmm_empty_k_group == "zeros":
        output.zero_()
    for group in read_groups(CHECK, group_list, request.group_list_type, len(group_list), x.shape[1]):
        inner = slice(group.start, group.stop)
        output[group.expert] = product(x[:, inner], weight[inner]).to(x.dtype)
    return output


def _require_dtype_of_x(request: GroupedRequest, dtype: torch.dtype) -> None:
    if request.dtype != dtype:
        raise CHECK.rejected("output_dtype", str(request.dtype), f"{dtype}, as x")
