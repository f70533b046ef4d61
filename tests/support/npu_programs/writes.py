"""Operations in place, on values and on views of values, and operations with outputs that are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_programs.choices import (
    Act,
    Choices,
    Side,
    both,
    expandable,
    filled,
    floating,
    inexact,
    numeric,
    ranked,
    real,
    writable,
)
from npu_programs.operations import named, operation


def _target(c: Choices, wanted: Callable[[Tensor], bool] = lambda _: True) -> int:
    return c.place(wanted) if c.rarely() else c.place(both(writable, wanted))


def _with_value(name: str, act: Callable[[Tensor, Any], Any], wanted: Callable[[Tensor], bool]) -> None:
    """An operation in place with a number or a tensor, on a window of a value."""

    def choose(c: Choices) -> Act:
        i = _target(c, wanted)
        window = c.window(c[i])
        target = window(c[i].detach())
        if c.flag():
            number = c.number(c[i])
            return lambda s: act(window(s[i]), number)
        if c.rarely():
            return lambda s: act(window(s[i]), torch.tensor(2))  # a number on the host
        j = c.place(
            lambda other: wanted(other) and expandable(other, target) and torch.can_cast(other.dtype, target.dtype)
        )
        return lambda s: act(window(s[i]), s[j])

    choose.__module__ = __name__
    named(name, choose)


_with_value("add_", torch.Tensor.add_, lambda _: True)
_with_value("sub_", torch.Tensor.sub_, numeric)
_with_value("mul_", torch.Tensor.mul_, lambda _: True)
_with_value("div_", torch.Tensor.div_, inexact)
_with_value("operator_augmented", lambda x, y: x.__iadd__(y), lambda _: True)
_with_value("eq_", torch.Tensor.eq_, lambda _: True)
_with_value("set_item", lambda x, y: x.__setitem__(slice(None) if x.dim() else (), y), lambda _: True)
_with_value("pow_", torch.Tensor.pow_, floating)
_with_value("fmod_", torch.Tensor.fmod_, lambda x: real(x) and floating(x))

_UNARY_IN_PLACE: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], bool]]] = {
    "zero_": (torch.Tensor.zero_, lambda _: True),
    "neg_": (torch.Tensor.neg_, numeric),
    "relu_": (torch.Tensor.relu_, both(numeric, real)),
    "sigmoid_": (torch.Tensor.sigmoid_, inexact),
    "exp_": (torch.Tensor.exp_, inexact),
    "clamp_": (lambda x: x.clamp_(-1, 2), both(real, numeric)),
    "clamp_min_": (lambda x: x.clamp_min_(0), both(real, numeric)),
    "triu_": (torch.Tensor.triu_, ranked(2)),
    "tril_": (lambda x: x.tril_(-1), ranked(2)),
    "cumsum_": (lambda x: x.cumsum_(0), numeric),
    "logical_not_": (torch.Tensor.logical_not_, lambda _: True),
    "fill_diagonal_": (lambda x: x.fill_diagonal_(3), ranked(2, 2)),
    "abs_": (torch.Tensor.abs_, real),
    "round_": (torch.Tensor.round_, floating),
    "nan_to_num_": (torch.Tensor.nan_to_num_, floating),
    "squeeze_": (torch.Tensor.squeeze_, lambda _: True),
    "unsqueeze_": (lambda x: x.unsqueeze_(0), ranked(0, 4)),
    "transpose_": (lambda x: x.transpose_(0, -1), ranked(2)),
    "silu_": (lambda x: torch.nn.functional.silu(x, inplace=True), floating),
    "addcmul_": (lambda x: x.addcmul_(x.detach().clone(), x.detach().clone(), value=2), numeric),
    "lerp_": (lambda x: x.lerp_(x.detach().clone() + 1, 0.25), floating),
    "foreach_add_": (lambda x: torch._foreach_add_([x, x.view_as(x)], 1), inexact),
    "foreach_mul_": (lambda x: torch._foreach_mul_([x], [x.detach().clone()]), numeric),
    "foreach_sqrt_": (lambda x: torch._foreach_sqrt_([x]), inexact),
    "foreach_lerp": (lambda x: torch._foreach_lerp([x], [x + 1], 0.5), floating),
    "detach_and_write": (lambda x: x.detach().add_(1), lambda _: True),
    "data": (lambda x: x.data.mul_(2), lambda _: True),
}


def _unary_in_place(name: str) -> None:
    act, wanted = _UNARY_IN_PLACE[name]

    def choose(c: Choices) -> Act:
        i = _target(c, wanted)
        window = c.window(c[i]) if not name.endswith(("squeeze_", "transpose_")) else lambda value: value
        return lambda s: act(window(s[i]))

    choose.__module__ = __name__
    named(name, choose)


for _name in _UNARY_IN_PLACE:
    _unary_in_place(_name)


@operation
def copy_(c: Choices) -> Act:
    i = _target(c)
    window = c.window(c[i])
    j = c.place(lambda other: expandable(other, window(c[i].detach())))
    if c.flag():
        return lambda s: window(s[i]).copy_(s.on_host(j))
    return lambda s: window(s[i]).copy_(s[j])


@operation
def fill_(c: Choices) -> Act:
    i = _target(c)
    window, number = c.window(c[i]), c.of((1, 2.5, True, 0, -1))
    how = c.below(3)
    if how == 0:
        return lambda s: window(s[i]).fill_(number)
    return lambda s: window(s[i]).fill_(torch.tensor(number).to(s.device if how == 1 else "cpu"))


@operation
def masked_fill_(c: Choices) -> Act:
    i = _target(c)
    window, number, salt = c.window(c[i]), c.of((1, 0, 3)), c.below(256)
    return lambda s: window(s[i]).masked_fill_(s.new(window(s[i]).shape, torch.bool, salt), number)


@operation
def masked_scatter_(c: Choices) -> Act:
    i = _target(c)
    salt = c.below(256)
    return lambda s: s[i].masked_scatter_(s.new(s[i].shape, torch.bool, salt), s.new((s[i].numel(),), s[i].dtype, salt))


@operation
def scatter_(c: Choices) -> Act:
    i = _target(c, both(ranked(1), filled))
    d, salt, number = c.dim(c[i]), c.below(256), c.number(c[i])
    how = c.below(4)
    size = c[i].size(d)

    def act(s: Side) -> Any:
        index = s.whole(s[i].shape, size, salt)
        source = s.new(s[i].shape, s[i].dtype, salt)
        if how == 0:
            return s[i].scatter_(d, index, number)
        if how == 1:
            return s[i].scatter_(d, index, source)
        if how == 2:
            return s[i].scatter_add_(d, index, source)
        return s[i].scatter_reduce_(d, index, source, "amax")

    return act


@operation
def index_put_(c: Choices) -> Act:
    i = _target(c, both(ranked(1), filled))
    window, salt, accumulate, how = c.window(c[i]), c.below(256), c.flag(), c.below(4)
    target = window(c[i].detach())
    size = target.size(0) if target.dim() else 0

    def act(s: Side) -> Any:
        x = window(s[i])
        index = s.whole((3,), size, salt) - (size if how == 1 else 0)
        if how == 2:
            index = index.cpu()
        if how == 3:
            index = s.new((size,), torch.bool, salt)
        return x.index_put_((index,), s.new(x[index].shape, x.dtype, salt), accumulate)

    return act


@operation
def index_in_place(c: Choices) -> Act:
    i = _target(c, both(ranked(1), filled))
    d, salt, how = c.dim(c[i]), c.below(256), c.below(4)
    size = c[i].size(d)

    def act(s: Side) -> Any:
        index = torch.arange(size).flip(0)[: size - size // 3].to(s.device)
        source = s.new(s[i].index_select(d, index).shape, s[i].dtype, salt)
        if how == 0:
            return s[i].index_fill_(d, index, 1)
        if how == 1:
            return s[i].index_copy_(d, index, source)
        if how == 2:
            return s[i].index_add_(d, index, source)
        return s[i].put_(s.whole((2,), s[i].numel(), salt), s.new((2,), s[i].dtype, salt))

    return act


@operation
def resize_(c: Choices) -> Act:
    i = c.place(lambda x: writable(x) and not x.requires_grad)
    sizes = c.of(((2, 2), (0,), (7,), (), (3, 1, 2)))
    return lambda s: s[i].resize_(sizes).fill_(1)  # what it gains is nobody's until it is written


@operation
def set_(c: Choices) -> Act:
    i = c.place(lambda x: not x.requires_grad)
    j = c.place(lambda x: x.dtype == c[i].dtype and not x.requires_grad)
    how = c.below(3)
    if how == 0:
        return lambda s: s[i].set_(s[j])
    if how == 1:
        return lambda s: torch.empty(0, dtype=s[j].dtype, device=s.device).set_(s[j].untyped_storage(), s[j].storage_offset(), s[j].size(), s[j].stride())  # fmt: skip
    return lambda s: torch.empty(0, dtype=s[j].dtype, device=s.device).set_(s[j].detach())
