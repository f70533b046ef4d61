"""The arguments of ``npu_quant_matmul``, and the shape of its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.quantisation import scalar_types as types
from npudiff.device.simulator.quantisation.integers import PER_WORD, unpacked

CHECK = ArgumentChecks("npu_quant_matmul", default=ErrorCode.PARAMETER)

OUTPUTS = {
    types.INT8: torch.int8,
    types.FLOAT16: torch.float16,
    types.BFLOAT16: torch.bfloat16,
    types.INT32: torch.int32,
}
"""ScalarType numbers of outputs."""


@dataclass(frozen=True)
class QuantMatmulRequest:
    """One call. Names are those of the schema."""

    x1: Tensor
    x2: Tensor
    """[..., m, k] and [..., k, n], int8, rank 2 to 6, batch axes broadcast. Or int32, eight integers of 4 bits in a
    word: [..., m, k / 8], and [k, n / 8] or a transposed [n, k / 8]. Or int8 [m, k] and int32 [k, n / 8]."""
    scale: Tensor
    """[1] or [n]: float32, bfloat16, or int64 of npu_trans_quant_param. Of float32 only 19 bits count where output is
    int8 or float16 and there is no pertoken_scale: op-plugin makes such words of it. Of two axes where it is of groups,
    see :mod:`grouped_scales`."""
    offset: Tensor | None
    """float32, [1] or [n]: added to what has been scaled, as an integer of 9 bits; for output int8. int8 by int32:
    float32 [n], ``8 * sum(w * scale)``. int4 with scales of groups: float16, what the weight is above."""
    pertoken_scale: Tensor | None
    """float32, [m]; [m, 1] with groups along k, [m, k / 128] with blocks."""
    bias: Tensor | None
    """[n], or [batch, 1, n] with an output of three axes. int32 is added to the product, floats at the end."""
    output_dtype: int | None
    """ScalarType: int8, which is the default, float16, bfloat16 or int32."""
    x1_dtype: int | None
    x2_dtype: int | None
    pertoken_scale_dtype: int | None
    scale_dtype: int | None
    """Options of Ascend 950, as is y_scale."""
    group_sizes: Sequence[int] | None
    """Zeros; [0, 0, 256] for int8 by int32, this or [1, 1, 256] for int4 with scales of groups, [1, 128, 128] for int8
    in blocks."""
    y_scale: Tensor | None

    @property
    def output(self) -> torch.dtype:
        """The dtype of the output.

        Raises
        ------
        OperatorRejected
            A2 and A3 do not have it.
        """
        if self.output_dtype is None:
            return torch.int8
        if self.output_dtype not in OUTPUTS:
            allowed = "None, " + ", ".join(f"{known} ({dtype})" for known, dtype in OUTPUTS.items())
            raise CHECK.rejected("output_dtype", self.output_dtype, allowed)
        return OUTPUTS[self.output_dtype]

    @property
    def words(self) -> bool:
        """Whether inputs are words of eight integers."""
        return self.x1.dtype == torch.int32

    @property
    def has_int4_weight(self) -> bool:
        """Whether x2 is words of eight integers."""
        return self.x2.dtype == torch.int32

    @property
    def transposed_words(self) -> bool:
        """Whether the words of x2 lie along k: [k / 8, n], a view of [n, k / 8]."""
        return self.words and self.x1.shape[-1] == self.x2.shape[-2]

    @property
    def columns(self) -> int:
        """The n of the output."""
        return self.x2.shape[-1] * (PER_WORD if self.has_int4_weight and not self.transposed_words else 1)

    def integers(self) -> tuple[Tensor, Tensor]:
        """Return both inputs as int8, [..., m, k] and [..., k, n]."""
        if not self.words:
            return self.x1, self.x2
        right = unpacked(self.x2.t()).t() if self.transposed_words else unpacked(self.x2)
        return unpacked(self.x1), right

    def shape(self) -> list[int]:
        """Return the shape of the output; refuse ranks and batches that op-plugin refuses."""
        for argument, tensor in (("x1", self.x1), ("x2", self.x2)):
            CHECK.rank(argument, tensor, range(2, 7), code=ErrorCode.WRAPPER)
        try:
            batch = torch.broadcast_shapes(self.x1.shape[:-2], self.x2.shape[:-2])  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            given, allowed = f"of shape {list(self.x2.shape)}", f"batch axes that broadcast with {list(self.x1.shape)}"
            raise CHECK.rejected("x2", given, allowed, ErrorCode.WRAPPER) from error
        return [*batch, self.x1.shape[-2], self.columns]
