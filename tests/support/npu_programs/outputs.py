"""Operations with outputs that are given: of the right sizes, empty, of wrong sizes, views, or an input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_programs.choices import Act, Choices, Side, both, filled, inexact, numeric, ranked, real
from npu_programs.operations import named

_ONE: dict[str, tuple[Callable[..., Any], Callable[[Tensor], bool]]] = {
    "add_out": (lambda x, **o: torch.add(x, x, **o), lambda _: True),
    "exp_out": (torch.exp, inexact),
    "eq_out": (lambda x, **o: torch.eq(x, 1, **o), lambda _: True),
    "sum_out": (lambda x, **o: torch.sum(x, 0, **o), both(numeric, ranked(1))),
    "amax_out": (lambda x, **o: torch.amax(x, -1, **o), both(real, ranked(1), filled)),
    "cumsum_out": (lambda x, **o: torch.cumsum(x, 0, **o), numeric),
    "cat_out": (lambda x, **o: torch.cat([x, x], **o), ranked(1)),
    "stack_out": (lambda x, **o: torch.stack([x, x], **o), ranked(0, 4)),
    "matmul_out": (lambda x, **o: torch.matmul(x, x.mT, **o), both(inexact, ranked(2, 3))),
    "mm_out": (lambda x, **o: torch.mm(x, x.t(), **o), both(inexact, ranked(2, 2))),
    "index_select_out": (
        lambda x, **o: torch.index_select(x, 0, torch.zeros(2, dtype=torch.int64, device=x.device), **o),
        both(ranked(1), filled),
    ),
    "where_out": (lambda x, **o: torch.where(x == 1, x, x, **o), lambda _: True),
    "clamp_out": (lambda x, **o: torch.clamp(x, -1, 1, **o), both(real, numeric)),
    "argsort_out": (lambda x, **o: torch.argmax(x, **o), both(real, numeric, filled)),
    "nonzero_out": (torch.nonzero, lambda _: True),
    "tril_out": (torch.tril, ranked(2, 2)),  # torch 2.13 writes beyond outputs of batches that are not contiguous
    "masked_select_out": (lambda x, **o: torch.masked_select(x, x == x, **o), lambda _: True),
}
_SEVERAL: dict[str, tuple[Callable[..., Any], Callable[[Tensor], bool]]] = {
    "sort_out": (lambda x, **o: torch.sort(x, stable=True, dim=-1, **o), both(real, numeric)),
    "max_out": (lambda x, **o: torch.max(x, 0, **o), both(real, ranked(1), filled)),
    "topk_out": (lambda x, **o: torch.topk(x, 1, **o), both(real, numeric, ranked(1), filled)),
    "cummax_out": (lambda x, **o: torch.cummax(x, 0, **o), both(real, ranked(1))),
    "aminmax_out": (lambda x, **o: torch.aminmax(x, dim=0, **o), both(real, numeric, ranked(1), filled)),
}


def _output(s: Side, result: Tensor, how: int, salt: int) -> Tensor:  # noqa: PLR0911 - eight kinds
    """An output for a result that is known."""
    if how == 0:
        return s.new(result.shape, result.dtype, salt)
    if how == 1:
        return torch.empty(0, dtype=result.dtype, device=s.device)
    if how == 2:  # has too many elements, and another rank: is resized, with a warning
        return s.new((2, *result.shape, 2), result.dtype, salt)
    if how == 3:  # every other element of something larger
        return s.new((*result.shape, 2), result.dtype, salt)[..., 0]
    if how == 4:  # another order
        return s.new(result.shape[::-1], result.dtype, salt).permute(list(range(result.dim()))[::-1])
    if how == 5:  # too few elements: its storage grows
        return s.new((1,), result.dtype, salt)
    if how == 6:
        return s.new(result.shape, torch.float64, salt)
    return s.new((*result.shape, 2), result.dtype, salt)[..., :1]  # a view of another shape


def _given(name: str, act: Callable[..., Any], wanted: Callable[[Tensor], bool]) -> None:
    def choose(c: Choices) -> Act:
        i = c.place(lambda x: wanted(x) and (not x.requires_grad or c.rarely()))
        how, second, salt, itself = c.below(8), c.below(8), c.below(256), c.rarely()

        def call(s: Side) -> Any:
            with torch.no_grad():
                known = act(s[i])
            if isinstance(known, Tensor):
                out = s[i] if itself and known.shape == s[i].shape else _output(s, known, how, salt)
                return act(s[i], out=out), out
            outs = tuple(_output(s, one, how if n == 0 else second, salt) for n, one in enumerate(known))
            return tuple(act(s[i], out=outs)), outs

        return call

    choose.__module__ = __name__
    named(name, choose)


for _name, (_act, _wanted) in (_ONE | _SEVERAL).items():
    _given(_name, _act, _wanted)
