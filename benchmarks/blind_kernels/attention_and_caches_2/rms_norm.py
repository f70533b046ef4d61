"""Wrong kernels of rms_norm; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"
NAME = "rms_norm"


def _added(inputs):
    total = inputs.hidden.to(torch.float64)
    return total if inputs.residual is None else total + inputs.residual.to(torch.float64)


def _weight(inputs):
    return inputs.weight.to(torch.float64) + (1.0 if inputs.kind == "gemma" else 0.0)


def _normed(inputs, rstd=None, weight=None):
    total, dtype = _added(inputs), inputs.hidden.dtype
    if rstd is None:
        rstd = torch.rsqrt(total.square().mean(dim=-1, keepdim=True) + inputs.epsilon)
    weight = _weight(inputs) if weight is None else weight
    return {"output": (total * rstd * weight).to(dtype), "rstd": rstd.to(torch.float32), "sum": total.to(dtype)}


@npudiff.implementation(NAME, name="c_rms_norm_01_mean_over_padded_columns", on_device=True)
def c01(inputs, target):
    """A row is padded with zeros to whole blocks of 64 columns, and the sum of squares divided by the padded number."""
    total = _added(inputs)
    columns = total.shape[-1]
    columns = -(-columns // 64) * 64 if WRONG else columns
    return _normed(inputs, torch.rsqrt(total.square().sum(dim=-1, keepdim=True) / columns + inputs.epsilon))


@npudiff.implementation(NAME, name="c_rms_norm_02_squares_in_half", on_device=True)
def c02(inputs, target):
    """Squares of two-byte rows are computed in float16, where those of numbers beyond 255 are infinite."""
    squares = _added(inputs).square()
    if WRONG and inputs.hidden.dtype != torch.float32:
        squares = squares.to(torch.float16).to(torch.float64)
    return _normed(inputs, torch.rsqrt(squares.mean(dim=-1, keepdim=True) + inputs.epsilon))


@npudiff.implementation(NAME, name="c_rms_norm_03_factor_in_the_dtype_of_rows", on_device=True)
def c03(inputs, target):
    """The reciprocal root is rounded to the dtype of the rows before it multiplies them."""
    rstd = torch.rsqrt(_added(inputs).square().mean(dim=-1, keepdim=True) + inputs.epsilon)
    return _normed(inputs, rstd.to(inputs.hidden.dtype).to(torch.float64) if WRONG else rstd)


@npudiff.implementation(NAME, name="c_rms_norm_04_weight_of_the_first_layer", stateful=True, on_device=True)
def c04():
    """1 plus the weight of a Gemma norm is computed once for each hidden size, whatever layer asks next."""
    ready = {}

    def call(inputs, target):
        if inputs.kind != "gemma":
            return _normed(inputs)
        key = (inputs.weight.shape, inputs.weight.dtype) if WRONG else object()
        return _normed(inputs, weight=ready.setdefault(key, _weight(inputs)))

    return call


@npudiff.implementation(NAME, name="c_rms_norm_05_epsilon_beside_the_root", on_device=True)
def c05(inputs, target):
    """Epsilon is added to the root of the mean square, and not to the mean square."""
    mean = _added(inputs).square().mean(dim=-1, keepdim=True)
    if not WRONG:
        return _normed(inputs, torch.rsqrt(mean + inputs.epsilon))
    return _normed(inputs, 1 / (mean.sqrt() + inputs.epsilon))


@npudiff.implementation(NAME, name="c_rms_norm_06_tiles_of_wide_rows", on_device=True)
def c06(inputs, target):
    """Rows that are wider than the 8,192 columns of a buffer go in tiles of as many, and the last, shorter tile is left
    out of the sum of squares."""
    squares = _added(inputs).square()
    columns = squares.shape[-1]
    counted = columns // 8192 * 8192 if WRONG and columns > 8192 else columns
    mean = squares[..., :counted].sum(dim=-1, keepdim=True) / columns
    return _normed(inputs, torch.rsqrt(mean + inputs.epsilon))
