"""What ``npu_grouped_matmul`` refuses whatever the dtypes are: how many tensors, their shapes, and groups."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.grouped_matmul.groups import check_group_list
from npudiff.device.simulator.grouped_matmul.request import CHECK, INNER, NO_GROUPS, ONE_EACH, ROWS, GroupedRequest
from npudiff.device.simulator.grouped_matmul.tiled_weights import check_whole_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_MAX_STACKED = 1024
_MAX_LISTED = 128
_MAX_INNER = 65535
_OF_ACTIVATION_QUANTISATION = ("activation_input", "activation_quant_scale", "activation_quant_offset")
_OF_950 = ("x_dtype", "weight_dtype", "scale_dtype", "per_token_scale_dtype")


def check_host(request: GroupedRequest) -> None:
    """Refuse what op-plugin refuses.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    """
    wrapper = ErrorCode.WRAPPER
    for argument, tensors in (("x", request.x), ("weight", request.weight)):
        if not tensors:
            words = "Invalid inputs: neither x nor weight could be empty."
            raise CHECK.rejected(argument, "empty", "at least one tensor", wrapper, words)
    words = f"Invalid value of split_item [{request.split_item}], which should only be one of 0/1/2/3."
    CHECK.choice("split_item", request.split_item, (0, 1, 2, 3), wrapper, words)
    if request.is_list:
        _check_list_overload(request)
    elif request.group_type is None:
        words = "Requires manual passing group_type, current is None."
        raise CHECK.rejected("group_type", None, "-1, 0 or 2: it has to be given", wrapper, words)
    else:
        words = f"The group type must be -1, 0 or 2, but now is [{request.group_type}]"
        CHECK.choice("group_type", request.group_type, (NO_GROUPS, ROWS, INNER), wrapper, words)
    if request.group_type == INNER and request.split_item not in ONE_EACH and len(request.weight) != 1:
        given = f"of {len(request.weight)} tensors"
        raise CHECK.rejected("weight", given, "1 tensor, where the inner axis is cut and split_item is 2 or 3", wrapper)


def check(request: GroupedRequest) -> None:
    """Refuse what the operator refuses and the simulator cannot do, before dtypes are looked at.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        Activation quantisation, groups of the inner axis with an output each, several x with a group list.
    """
    check_host(request)
    for argument in _OF_950:
        if getattr(request, argument) is not None:
            raise CHECK.rejected(argument, getattr(request, argument), "None: dtypes of Ascend 950 alone have it")
    for argument in _OF_ACTIVATION_QUANTISATION:
        if getattr(request, argument):
            raise CHECK.not_simulated(argument, f"of {len(getattr(request, argument))} tensors", "None")
    CHECK.choice("act_type", request.act_type, (0, 1, 2, 4, 5))
    if request.act_type:
        raise CHECK.not_simulated("act_type", request.act_type, "0")
    most = _MAX_STACKED if request.is_stacked else _MAX_LISTED
    CHECK.between("weight", request.experts, 1, most, ErrorCode.TILING)
    if request.group_type == INNER:
        _check_inner(request)
        return
    _check_grouping(request)
    _check_shapes(request)


def _check_list_overload(request: GroupedRequest) -> None:
    """The overload whose group_list is on the host."""
    wrapper = ErrorCode.WRAPPER
    for argument in ("group_type", "group_list_type", "act_type"):
        if getattr(request, argument):
            raise CHECK.rejected(argument, getattr(request, argument), "None, where group_list is a list", wrapper)
    ends = request.group_ends
    if ends is not None and (min(ends, default=0) < 0 or any(b < a for a, b in pairwise(ends))):
        raise CHECK.rejected("group_list", list(ends), "ends of groups, which do not decrease", wrapper)
    if request.split_item not in ONE_EACH:
        return
    if ends is None:
        _require_one_each(request, wrapper)
    elif len(request.x) != 1:
        allowed = "1 tensor, with group_list and split_item 0 or 1"
        raise CHECK.rejected("x", f"of {len(request.x)} tensors", allowed, wrapper)
    elif request.experts != len(ends):
        raise CHECK.rejected("weight", f"{request.experts} weights", f"{len(ends)}, as group_list", wrapper)


def _require_one_each(request: GroupedRequest, code: ErrorCode) -> None:
    if len(request.x) != request.experts:
        given = f"of {len(request.x)} tensors"
        raise CHECK.rejected("x", given, f"{request.experts}, one for each weight", code)


def _check_grouping(request: GroupedRequest) -> None:
    """Groups of rows, or none."""
    group_list = request.group_list
    if request.group_type == NO_GROUPS:
        if request.split_item not in ONE_EACH:
            raise CHECK.rejected("split_item", request.split_item, "0 or 1, with group_type -1")
        if group_list is not None:
            raise CHECK.rejected("group_list", "a tensor", "None, with group_type -1")
        _require_one_each(request, ErrorCode.PARAMETER)
        return
    if len(request.x) > 1 or (request.is_list and request.group_ends is None):
        if group_list is not None or request.group_ends is not None:
            raise CHECK.not_simulated("group_list", f"given with {len(request.x)} tensors x", "one tensor x")
        _require_one_each(request, ErrorCode.PARAMETER)
        return
    if request.is_list:
        _check_ends(request)
        return
    if request.split_item in ONE_EACH:
        raise CHECK.rejected("split_item", request.split_item, "2 or 3, with group_type 0 and one tensor x")
    if group_list is None:
        raise CHECK.rejected("group_list", None, "a tensor, with group_type 0 and one tensor x")
    check_group_list(CHECK, group_list, request.group_list_type, request.experts)


def _check_ends(request: GroupedRequest) -> None:
    """HOST looks at order only; that the ends fit the weights and the rows is what a tiling stage would see."""
    ends = list(request.group_ends or ())
    if len(ends) != request.experts:
        raise CHECK.rejected("group_list", f"of length {len(ends)}", f"{request.experts}, one for each weight")
    if ends and ends[-1] > len(request.x[0]):
        raise CHECK.rejected("group_list", ends, f"ends up to {len(request.x[0])}, the rows of x")


def _check_shapes(request: GroupedRequest) -> None:
    several = len(request.x) > 1 or request.group_type == NO_GROUPS
    for number, x in enumerate(request.x):
        CHECK.rank(f"x[{number}]", x, tuple(range(2, 7)) if request.split_item in ONE_EACH and several else (2,))
    inner = [request.inner_of(x) for x in request.x] if several else [request.inner] * request.experts
    for number, weight in enumerate(request.weight):
        CHECK.rank(f"weight[{number}]", weight, (3,) if request.is_stacked else (2,))
        if weight.dtype == torch.int32:
            CHECK.simulated_contiguous("contiguous weights of int4", **{f"weight[{number}]": weight})
        check_whole_tiles(CHECK, f"weight[{number}]", weight)
    for expert in range(request.experts):
        weight = request.of_expert(request.weight, expert)
        if weight.shape[0] != inner[expert]:
            given = f"of {weight.shape[0]} rows"
            raise CHECK.rejected(f"weight of expert {expert}", given, f"{inner[expert]}, the last axis of x")
        for argument, size in (("x", inner[expert]), ("weight", request.columns(expert))):
            if size > _MAX_INNER:
                given = f"of last axis {size}"
                raise CHECK.rejected(argument, given, f"at most {_MAX_INNER}", ErrorCode.TILING)
        if request.split_item not in ONE_EACH and request.columns(expert) != request.columns(0):
            given = f"of {request.columns(expert)} columns"
            raise CHECK.rejected(f"weight of expert {expert}", given, f"{request.columns(0)}, as the first")


def _check_inner(request: GroupedRequest) -> None:
    """Groups of the inner axis: one x, which is a transposed view, and one weight [K, N]."""
    if request.split_item in ONE_EACH:
        raise CHECK.not_simulated("split_item", request.split_item, "2 and 3, with group_type 2")
    x, weight = request.x[0], request.weight[0]
    if len(request.x) != 1:
        raise CHECK.rejected("x", f"of {len(request.x)} tensors", "1 tensor, with group_type 2 and split_item 2 or 3")
    CHECK.rank("x[0]", x, 2)
    CHECK.rank("weight[0]", weight, 2)
    if not x.t().is_contiguous():
        given = f"of strides {x.stride()}"
        raise CHECK.rejected("x[0]", given, "a transposed view of a tensor [K, M], with group_type 2")
    CHECK.shape("weight[0]", weight, (x.shape[1], weight.shape[1]), meaning="[K, N], the inner axis of x")
    if request.group_list is None:
        raise CHECK.rejected("group_list", None, "a tensor, with group_type 2")
    CHECK.rank("group_list", request.group_list, 1)
    if request.group_list_type > 1:
        raise CHECK.rejected("group_list_type", request.group_list_type, "0 or 1, with group_type 2")


def per_expert(request: GroupedRequest, argument: str, tensors: Sequence[Tensor], dtypes: Sequence[str]) -> None:
    """Require [E, N] of stacked weights, or [N] for each of several, in one of some dtypes."""
    if len(tensors) != len(request.weight):
        allowed = f"{len(request.weight)}, one for each weight"
        raise CHECK.rejected(argument, f"of {len(tensors)} tensors", allowed)
    for number, tensor in enumerate(tensors):
        CHECK.dtype(argument, tensor, *dtypes)
        columns = (request.columns(number),)
        shape, meaning = ((request.experts, *columns), "[E, N]") if request.is_stacked else (columns, "[N]")
        CHECK.shape(argument, tensor, shape, meaning=meaning)
