"""Element by element: arithmetic, comparisons, and other dtypes, with broadcasting and numbers of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from npu_programs.choices import (
    Act,
    Choices,
    both,
    broadcasts,
    floating,
    inexact,
    laid_out_alike,
    numeric,
    ranked,
    real,
)
from npu_programs.operations import named, operation

Wanted = Callable[[Tensor], bool]


def _anything(_: Tensor) -> bool:
    return True


def _whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


_BINARY: dict[str, tuple[Callable[..., Any], Wanted]] = {
    "add": (torch.add, _anything),
    "subtract": (lambda x, y: x - y, numeric),
    "multiply": (torch.mul, _anything),
    "divide": (lambda x, y: x / y, _anything),
    "floor_divide": (lambda x, y: x // y, lambda x: floating(x)),
    "remainder": (lambda x, y: x % y, floating),
    "power": (torch.pow, inexact),
    "equal": (torch.eq, _anything),
    "less": (lambda x, y: x < y, real),
    "at_least": (torch.ge, real),
    "maximum": (lambda x, y: torch.maximum(x, torch.as_tensor(y, device=x.device)), real),
    "logical_and": (lambda x, y: torch.logical_and(x, torch.as_tensor(y, device=x.device)), _anything),
    "bitwise_or": (lambda x, y: x | (y if isinstance(y, Tensor) else int(y) if abs(y) < 9 else 1), _whole),
    "add_alpha": (lambda x, y: torch.add(x, y, alpha=2), numeric),
    "atan2": (lambda x, y: torch.atan2(x, torch.as_tensor(y, device=x.device, dtype=x.dtype)), floating),
    "where": (lambda x, y: torch.where(x.isnan(), x, y), _anything),
    "where_host_number": (lambda x, y: torch.where(x.isnan(), torch.tensor(1.0), x), floating),
    "addcdiv": (lambda x, y: torch.addcdiv(x, x, torch.as_tensor(y, device=x.device, dtype=x.dtype)), inexact),
    "lerp": (lambda x, y: torch.lerp(x, x * 2, 0.3), floating),
    "reflected": (lambda x, y: 2 - x if y is None else 3.5 * x, numeric),
    "allclose": (lambda x, y: torch.allclose(x, x), floating),
    "equal_whole": (
        lambda x, y: torch.equal(x, y) if isinstance(y, Tensor) and y.dtype == x.dtype else torch.equal(x, x),
        _anything,
    ),
    "isclose": (lambda x, y: torch.isclose(x, x * 1), inexact),
}


def _binary(name: str) -> None:
    act, wanted = _BINARY[name]

    def choose(c: Choices) -> Act:
        i = c.place(wanted)
        how = c.below(4)
        if how == 0:
            number = c.number(c[i])
            return lambda s: act(s[i], number)
        if how == 1:
            number = c.of((2.5, 3, True, -1))
            return lambda s: act(s[i], torch.tensor(number))  # a number on the host, beside a tensor of the device
        j = c.partner(c[i], wanted)
        return lambda s: act(s[i], s[j])

    choose.__module__ = __name__
    named(name, choose)


for _name in _BINARY:
    _binary(_name)


_UNARY: dict[str, tuple[Callable[[Tensor], Any], Wanted]] = {
    "negative": (lambda x: -x, numeric),
    "absolute": (torch.abs, _anything),
    "exp": (torch.exp, _anything),
    "log": (torch.log, _anything),
    "sqrt": (torch.sqrt, _anything),
    "rsqrt": (torch.rsqrt, floating),
    "reciprocal": (torch.reciprocal, inexact),
    "tanh": (torch.tanh, _anything),
    "sigmoid": (torch.sigmoid, _anything),
    "erf": (torch.erf, floating),
    "sine": (torch.sin, inexact),
    "square": (torch.square, _anything),
    "relu": (torch.relu, both(real, numeric)),
    "gelu": (functional.gelu, floating),
    "gelu_tanh": (lambda x: functional.gelu(x, approximate="tanh"), floating),
    "silu": (functional.silu, floating),
    "softplus": (functional.softplus, floating),
    "leaky_relu": (functional.leaky_relu, floating),
    "hardswish": (functional.hardswish, floating),
    "logsigmoid": (functional.logsigmoid, floating),
    "floor": (torch.floor, real),
    "sign": (torch.sign, real),
    "isnan": (torch.isnan, _anything),
    "isfinite": (torch.isfinite, _anything),
    "logical_not": (torch.logical_not, _anything),
    "bitwise_not": (torch.bitwise_not, _whole),
    "clamp": (lambda x: x.clamp(-1, 1.5), both(real, numeric)),
    "clamp_tensor": (lambda x: x.clamp(min=torch.ones_like(x)), both(real, numeric)),
    "tril": (torch.tril, ranked(2)),
    "flip": (lambda x: x.flip(0) if x.dim() else x, _anything),
    "roll": (lambda x: x.roll(1, 0) if x.dim() else x, _anything),
    "repeat": (lambda x: x.repeat(2, *([1] * x.dim())), ranked(0, 3)),
    "tile_interleave": (lambda x: x.repeat_interleave(2, 0) if x.dim() else x, _anything),
    "ones_like": (torch.ones_like, laid_out_alike),
    "full_like": (lambda x: torch.full_like(x, 2), laid_out_alike),
    "new_zeros": (lambda x: x.new_zeros((2, 3)), _anything),
    "new_tensor": (lambda x: x.new_tensor([1, 2]), _anything),
    "frexp": (torch.frexp, both(floating, laid_out_alike)),
    "foreach": (lambda x: torch._foreach_add([x, x], 1), numeric),
    "foreach_norm": (lambda x: torch._foreach_norm([x, x * 2]), floating),
    "arange_like": (lambda x: torch.arange(5, device=x.device), _anything),
    "linspace_like": (lambda x: torch.linspace(0, 1, 5, device=x.device), _anything),
    "eye_like": (lambda x: torch.eye(3, device=x.device), _anything),
    "scalar_tensor": (lambda x: torch.scalar_tensor(3, device=x.device, dtype=x.dtype), _anything),
    "angle": (torch.angle, inexact),
    "polar": (lambda x: torch.polar(x.abs(), x), lambda x: x.dtype == torch.float32),
    "complex": (lambda x: torch.complex(x, x), lambda x: x.dtype == torch.float32),
}


def _unary(name: str) -> None:
    act, wanted = _UNARY[name]

    def choose(c: Choices) -> Act:
        i = c.place(wanted)
        return lambda s: act(s[i])

    choose.__module__ = __name__
    named(name, choose)


for _name in _UNARY:
    _unary(_name)


@operation
def meshgrid(c: Choices) -> Act:
    i = c.place(ranked(1, 1))
    return lambda s: torch.meshgrid(s[i], s[i][:2], indexing="ij")


@operation
def three_operands(c: Choices) -> Act:
    i = c.place(both(real, numeric))
    j = c.partner(c[i], lambda other: other.dtype == c[i].dtype)
    k = c.partner(c[i], lambda other: other.dtype == c[i].dtype and broadcasts(other, c[j]))
    how = c.below(3)
    if how == 0:
        return lambda s: torch.addcmul(s[i], s[j], s[k])
    if how == 1:
        return lambda s: torch.where(s[i] > 0, s[j], s[k])
    return lambda s: torch.clamp(s[i], s[j], s[k])
