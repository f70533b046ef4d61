"""``batch_matmul_transpose`` of sgl-kernel-npu: products of the heads of each token with a matrix per head.

Sources: sgl-kernel-npu's host code and README (``csrc/batch_matmul_transpose``), sglang 0.5.23's calls.
"""

from __future__ import annotations

from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks, dtype_name
from npudiff.device.simulator.errors import ErrorCode, UndefinedBehaviour

_CHECK = ArgumentChecks("batch_matmul_transpose", default=ErrorCode.WRAPPER)

_FORMATS = ("ND", "NZ")
_QUANT_MODES = ("per_channel_symm", "per_channel_asymm", "per_token_symm")
_MOST_TOKENS = 1024
_COLUMNS = 16


def batch_matmul_transpose(
    tensor_a: Tensor, tensor_b: Tensor, tensor_c: Tensor, format_mode: str | None, quant_mode: str | None
) -> None:
    """Write tensor_a times tensor_b, batch by batch, into tensor_c.

    Parameters
    ----------
    tensor_a : Tensor
        [M, B, K], float16 or bfloat16, M from 1 to 1024.
    tensor_b : Tensor
        [B, K, N]; with format_mode "NZ" [B, N / 16, K, 16]; dtype of tensor_a.
    tensor_c : Tensor
        [M, B, N], dtype of tensor_a. Summed in float32 and rounded once.
    format_mode : str, optional
        "ND" or "NZ"; "ND" without it.
    quant_mode : str, optional
        Checked, and of no effect for these dtypes.

    Raises
    ------
    OperatorRejected
        Dtype, rank, shape or mode is not one of the above.
    UndefinedBehaviour
        What the host code does not check: another size of tensor_c, gaps.
    """
    _check(tensor_a, tensor_b, tensor_c, "ND" if format_mode is None else format_mode, quant_mode)
    _CHECK.addressed_as_contiguous(tensor_a=tensor_a, tensor_b=tensor_b, tensor_c=tensor_c)
    matrices = tensor_b.transpose(1, 2).flatten(2) if format_mode == "NZ" else tensor_b
    shape = (*tensor_a.shape[:2], matrices.shape[2])
    if tuple(tensor_c.shape) != shape:
        raise UndefinedBehaviour(f"{_CHECK.operator}: tensor_c is {list(tensor_c.shape)}, written as {list(shape)}")
    tensor_c.copy_((tensor_a.transpose(0, 1).float() @ matrices.float()).transpose(0, 1))


def batch_matmul_transpose_meta() -> None:
    """Return nothing."""


def _check(a: Tensor, b: Tensor, c: Tensor, format_mode: str, quant_mode: str | None) -> None:
    for argument, tensor in (("tensor_b", b), ("tensor_c", c)):
        if tensor.dtype != a.dtype:
            words = "tensor type is not the same"
            raise _CHECK.rejected(argument, dtype_name(tensor), f"{dtype_name(a)}, as tensor_a", words=words)
    if dtype_name(a) not in ("float16", "bfloat16"):
        words = "tensor type only support half or bf16"
        raise _CHECK.rejected("tensor_a", dtype_name(a), "float16 or bfloat16", words=words)
    words = f"format_mode: Unsupported mode value {format_mode}"
    _CHECK.choice("format_mode", format_mode, _FORMATS, words=words)
    words = f"quant_mode: Unsupported mode value {quant_mode}"
    _CHECK.choice("quant_mode", quant_mode, (None, *_QUANT_MODES), words=words)
    _CHECK.rank("tensor_a", a, 3, "[M, B, K]")
    tiled = format_mode == "NZ"
    if b.dim() != 3 + tiled:
        words = "tensor shape should be dim4 in nz format" if tiled else "tensor shape should be dim3 in ND format"
        raise _CHECK.rejected("tensor_b", f"of rank {b.dim()}", f"rank {3 + tiled}", words=words)
    if (b.shape[0], b.shape[1 + tiled]) != tuple(a.shape[1:]):
        allowed = f"B {a.shape[1]} and K {a.shape[2]} of tensor_a"
        raise _CHECK.rejected("tensor_b", f"of shape {list(b.shape)}", allowed, words="tensor shape is wrong")
    if tiled and (b.shape[3] != _COLUMNS or a.shape[2] % _COLUMNS):
        raise UndefinedBehaviour(f"{_CHECK.operator}: tensor_b is {list(b.shape)}, no tiles of 16 by 16")
    if not 1 <= a.shape[0] <= _MOST_TOKENS:
        words = f"batchIdx is out of range: {a.shape[0] - 1}"
        raise _CHECK.rejected("tensor_a", f"of {a.shape[0]} rows", f"1 to {_MOST_TOKENS}", words=words)
