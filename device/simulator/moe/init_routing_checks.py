"""The arguments of ``npu_moe_init_routing_v2``, and what is refused of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.moe.requirements import FLOATS, Requirements

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

_REQUIRE = Requirements("npu_moe_init_routing_v2")

_MAX_EXPERTS = 10240
_MAX_EXPERTS_IN_PAIRS = 5120
_INT4 = 13
# META's list without those that A2 and A3 have.
_QUANT_MODES_OF_950 = (2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14, 15, 16, 17)


@dataclass(frozen=True)
class RoutingRequest:
    """One call. Names and defaults are those of the schema."""

    x: Tensor
    """[n, H]."""
    expert_idx: Tensor
    """int32 [n, k]."""
    scale: Tensor | None = None
    """float32. ``quant_mode`` -1: [n], sorted as the rows are. 0: [1]. 1: [experts in range, H] or [1, H], factors of
    the elements."""
    offset: Tensor | None = None
    """float32 [1], with ``quant_mode`` 0."""
    active_num: int = -1
    """How many rows at most, if positive."""
    expert_capacity: int = -1
    """Rows per expert with ``drop_pad_mode`` 1; the first ones stay."""
    expert_num: int = -1
    """How many experts there are."""
    drop_pad_mode: int = 0
    """0: rows lie close. 1: every expert has as many rows."""
    expert_tokens_num_type: int = 0
    """0: where rows end. 1: counts. 2: pairs of expert and count."""
    expert_tokens_num_flag: bool = False
    """Whether the third output is wanted."""
    quant_mode: int = -1
    """-1: none. 0: int8 with one scale. 1: int8 with a scale per row."""
    active_expert_range: Sequence[int] = ()
    """First expert, and the one behind the last; all experts if empty."""
    row_idx_type: int = 0
    """0: the place of each pair. 1: the pair at each place."""
    x_dtype: int | None = None
    """For dtypes that Ascend 950 has."""

    @property
    def expert_range(self) -> tuple[int, int]:
        """First expert, and the one behind the last."""
        if not self.active_expert_range:
            return 0, self.expert_num
        return self.active_expert_range[0], self.active_expert_range[1]

    @property
    def expanded_rows(self) -> int:
        """How many rows expanded_x has."""
        if self.drop_pad_mode:
            return self.expert_num * self.expert_capacity
        pairs = self.expert_idx.numel()
        return min(self.active_num, pairs) if self.active_num > 0 else pairs


def normalise(x: Tensor, expert_idx: Tensor, options: Mapping[str, Any]) -> RoutingRequest:
    """Return the arguments of a call as the dispatcher passes them."""
    return RoutingRequest(x, expert_idx, **options)


def check_host(request: RoutingRequest) -> None:
    """Refuse what op-plugin and META refuse, and what the simulator cannot do.

    Raises
    ------
    OperatorRejected
        With the wrapper's code.
    NotSimulated
        ``quant_mode`` 13.
    """
    wrapper = ErrorCode.WRAPPER
    _REQUIRE.rank("x", request.x, (2,), wrapper)
    _REQUIRE.rank("expert_idx", request.expert_idx, (2,), wrapper)
    shape = (len(request.x), request.expert_idx.shape[1])
    _REQUIRE.shape("expert_idx", request.expert_idx, shape, "[n, k], the rows of x")
    given = list(request.active_expert_range)
    if given and (len(given) != 2 or not 0 <= given[0] < given[1] <= _MAX_EXPERTS):
        allowed = f"two increasing numbers from 0 to {_MAX_EXPERTS}"
        raise _REQUIRE.rejected("active_expert_range", given, allowed, wrapper)
    _REQUIRE.choice("drop_pad_mode", request.drop_pad_mode, (0, 1), wrapper)
    _REQUIRE.choice("expert_tokens_num_type", request.expert_tokens_num_type, (0, 1, 2), wrapper)
    _REQUIRE.choice("row_idx_type", request.row_idx_type, (0, 1), wrapper)
    if request.quant_mode == _INT4:
        raise _REQUIRE.not_simulated("quant_mode", _INT4, "-1, 0 and 1")
    if request.quant_mode in _QUANT_MODES_OF_950:
        given_mode = f"{request.quant_mode}, which is for Ascend 950"
        raise _REQUIRE.rejected("quant_mode", given_mode, "-1, 0, 1 or 13")
    _REQUIRE.choice("quant_mode", request.quant_mode, (-1, 0, 1, _INT4), wrapper)
    if request.x_dtype is not None:
        raise _REQUIRE.rejected("x_dtype", request.x_dtype, "None: dtypes of Ascend 950 alone have it")


def check(request: RoutingRequest) -> None:
    """Refuse what the operator refuses.

    Raises
    ------
    OperatorRejected
        Naming the argument.
    NotSimulated
        ``quant_mode`` 13.
    """
    check_host(request)
    dtypes = (*FLOATS, "int8") if request.quant_mode == -1 else FLOATS
    _REQUIRE.dtype("x", request.x, dtypes)
    _REQUIRE.dtype("expert_idx", request.expert_idx, ("int32",))
    most = _MAX_EXPERTS_IN_PAIRS if request.expert_tokens_num_type == 2 else _MAX_EXPERTS
    _REQUIRE.between("expert_num", request.expert_num, 1, most, ErrorCode.TILING)
    if request.expert_range[1] > request.expert_num:
        given = list(request.active_expert_range)
        allowed = f"experts below expert_num, which is {request.expert_num}"
        raise _REQUIRE.rejected("active_expert_range", given, allowed, ErrorCode.TILING)
    _check_scales(request)
    if request.drop_pad_mode == 1:
        _check_drop_pad(request)


def _check_scales(request: RoutingRequest) -> None:
    scale, offset = request.scale, request.offset
    for argument, tensor in (("scale", scale), ("offset", offset)):
        if tensor is not None:
            _REQUIRE.dtype(argument, tensor, ("float32",))
    if request.quant_mode == 0:
        for argument, tensor in (("scale", scale), ("offset", offset)):
            if tensor is None:
                raise _REQUIRE.rejected(argument, None, "a tensor [1], with quant_mode 0")
            _REQUIRE.shape(argument, tensor, (1,), "with quant_mode 0")
    elif offset is not None:
        raise _REQUIRE.rejected("offset", "a tensor", f"None, with quant_mode {request.quant_mode}")
    elif scale is not None and request.quant_mode == -1:
        _REQUIRE.shape("scale", scale, (len(request.x),), "[n], with quant_mode -1")
    elif scale is not None:
        start, end = request.expert_range
        _REQUIRE.rank("scale", scale, (2,))
        rows = 1 if len(scale) == 1 else end - start
        _REQUIRE.shape("scale", scale, (rows, request.x.shape[1]), "[1, H] or [experts in range, H], with quant_mode 1")


def _check_drop_pad(request: RoutingRequest) -> None:
    """DOC: every expert has rows, counts are of type 1 and the row index of type 0."""
    tiling = ErrorCode.TILING
    if request.expert_range != (0, request.expert_num):
        allowed = f"[0, {request.expert_num}], with drop_pad_mode 1"
        raise _REQUIRE.rejected("active_expert_range", list(request.active_expert_range), allowed, tiling)
    _REQUIRE.choice("row_idx_type", request.row_idx_type, (0,), tiling)
    if request.expert_tokens_num_flag:
        _REQUIRE.choice("expert_tokens_num_type", request.expert_tokens_num_type, (1,), tiling)
    _REQUIRE.between("expert_capacity", request.expert_capacity, 1, len(request.x), tiling)
