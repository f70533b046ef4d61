"""The arguments of ``npu_grouped_matmul`` in both overloads, by one set of names, and the outputs that follow."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.grouped_matmul.int4 import PER_WORD

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

CHECK = ArgumentChecks("npu_grouped_matmul", default=ErrorCode.PARAMETER)

ONE_EACH = (0, 1)
"""Values of ``split_item`` that give an output per group; 2 and 3 give one for all."""

NO_GROUPS, ROWS, INNER = -1, 0, 2
"""Values of ``group_type``: what the groups are cut from."""

# Numbers of torch dtypes, and from 256 on of ACL dtypes.
_DTYPES: Mapping[int, torch.dtype] = MappingProxyType(
    {
        1: torch.int8,
        3: torch.int32,
        5: torch.float16,
        6: torch.float32,
        15: torch.bfloat16,
        256: torch.float32,
        257: torch.float16,
        258: torch.int8,
        259: torch.int32,
        283: torch.bfloat16,
    }
)


@dataclass(frozen=True)
class GroupedRequest:
    """One call. Names and defaults are those of the schemas; ``group_ends`` is group_list of the overload List."""

    x: Sequence[Tensor]
    weight: Sequence[Tensor]
    bias: Sequence[Tensor] = ()
    scale: Sequence[Tensor] = ()
    offset: Sequence[Tensor] = ()
    antiquant_scale: Sequence[Tensor] = ()
    antiquant_offset: Sequence[Tensor] = ()
    per_token_scale: Sequence[Tensor] = ()
    group_list: Tensor | None = None
    group_ends: Sequence[int] | None = None
    activation_input: Sequence[Tensor] = ()
    activation_quant_scale: Sequence[Tensor] = ()
    activation_quant_offset: Sequence[Tensor] = ()
    split_item: int = 0
    group_type: int | None = None
    group_list_type: int = 0
    act_type: int = 0
    tuning_config: Sequence[int] = ()
    output_dtype: int | torch.dtype | None = None
    x_dtype: int | None = None
    weight_dtype: int | None = None
    scale_dtype: int | None = None
    per_token_scale_dtype: int | None = None
    is_list: bool = False

    @property
    def is_stacked(self) -> bool:
        """Whether the weights of all experts are one tensor [E, K, N], and with them all that is given per expert."""
        return len(self.weight) == 1 and self.weight[0].dim() == 3

    @property
    def experts(self) -> int:
        """How many weights there are."""
        return len(self.weight[0]) if self.is_stacked else len(self.weight)

    @property
    def inner(self) -> int:
        """The inner axis of the first x; an int32 holds eight."""
        return self.inner_of(self.x[0])

    @staticmethod
    def inner_of(x: Tensor) -> int:
        """Return the inner axis of an x; an int32 holds eight."""
        return x.shape[-1] * (PER_WORD if x.dtype == torch.int32 else 1)

    def of_expert(self, tensors: Sequence[Tensor], expert: int) -> Tensor:
        """Return an expert's part of an argument that has one per expert."""
        return tensors[0][expert] if self.is_stacked else tensors[expert]

    def columns(self, expert: int) -> int:
        """Return the number of columns of an expert's product; an int32 holds eight."""
        weight = self.weight[0 if self.is_stacked else expert]
        return weight.shape[-1] * (PER_WORD if weight.dtype == torch.int32 else 1)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the outputs.

        Raises
        ------
        OperatorRejected
            No operator gives it.
        """
        if self.output_dtype is None:
            return self.x[0].dtype
        if isinstance(self.output_dtype, torch.dtype):
            return self.output_dtype
        if self.output_dtype not in _DTYPES:
            allowed = "None or the number of int8, int32, float16, bfloat16 or float32"
            raise CHECK.rejected("output_dtype", self.output_dtype, allowed)
        return _DTYPES[self.output_dtype]


def normalise(*, is_list: bool, **arguments: Any) -> GroupedRequest:  # noqa: ANN401 - those of the schemas
    """Return the arguments of a call; None counts as not given, as [] does."""
    given = {name: value for name, value in arguments.items() if value is not None}
    if is_list and "group_list" in given:
        given["group_ends"] = given.pop("group_list")
    return GroupedRequest(is_list=is_list, **given)


def output_shapes(request: GroupedRequest) -> list[tuple[int, ...]]:
    """Return the shapes of the outputs of a call that the host accepts."""
    rows = [x.shape[0] for x in request.x]
    if request.group_type == INNER:
        groups = 0 if request.group_list is None else len(request.group_list)
        return [(groups, rows[0], request.columns(0))]
    if request.split_item not in ONE_EACH:
        return [(sum(rows), request.columns(0))]
    if request.group_ends is not None:
        starts = [0, *request.group_ends[:-1]]
        return [
            (end - start, request.columns(expert))
            for expert, (start, end) in enumerate(zip(starts, request.group_ends, strict=True))
        ]
    return [(*x.shape[:-1], request.columns(number)) for number, x in enumerate(request.x)]
