"""Copies: other dtypes, other layouts, to the host and back; and numbers that leave the device."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch

from npu_programs.choices import (
    DTYPES,
    Act,
    Choices,
    OnHost,
    Side,
    filled,
    inexact,
    is_leaf,
    laid_out_alike,
    ranked,
    real,
)
from npu_programs.operations import operation

_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last)


@operation
def to_dtype(c: Choices) -> Act:
    i = c.place()
    dtype, again = c.of(DTYPES), c.flag()
    return lambda s: s[i].to(_on_a_card(dtype, s[i]), copy=again)


def _on_a_card(dtype: torch.dtype, tensor: torch.Tensor) -> torch.dtype:
    """What a card makes of a dtype: it has no float64, and says so in a warning; one that came from the host stays."""
    return torch.float32 if dtype == torch.float64 != tensor.dtype else dtype


@operation
def to_float(c: Choices) -> Act:
    i = c.place()
    dtype = c.of((torch.float32, torch.float16, torch.float64, torch.bfloat16, torch.int64))
    return lambda s: s[i].type(_on_a_card(dtype, s[i]))


@operation
def to_other(c: Choices) -> Act:
    i, j = c.place(), c.place()
    return lambda s: (s[i].to(s[j]), s[i].type_as(s[j]))


@operation
def to_host(c: Choices) -> Act:
    i = c.place()
    dtype = c.of((None, *DTYPES))
    how = c.below(3)
    if how == 0:
        return lambda s: OnHost(s[i].detach().to("cpu", dtype, copy=True))
    return lambda s: OnHost(
        s[i].detach().clone().cpu() if how == 1 else s[i].detach().to("cpu", dtype, copy=True, non_blocking=True)
    )


@operation
def to_device(c: Choices) -> Act:
    i = c.place()
    dtype = c.of((None, *DTYPES))

    def act(s: Side) -> Any:
        return s.on_host(i).to(s.device, dtype, copy=True)

    return act


@operation
def view_to_device(c: Choices) -> Act:
    """A view on the host, not contiguous, goes to the device."""
    i = c.place(ranked(1))
    how = c.below(3)

    def act(s: Side) -> Any:
        host = s.on_host(i)
        host = (host.transpose(0, -1), host[..., ::2], host[:1].expand(3, *host.shape[1:]) if len(host) else host)[how]
        return host.to(s.device, copy=True)

    return act


@operation
def copy_to_host(c: Choices) -> Act:
    """The device's values are copied into a view on the host, of another dtype."""
    i = c.place()
    dtype, how = c.of(DTYPES), c.below(3)

    def act(s: Side) -> Any:
        host = torch.zeros((*s[i].shape, 2), dtype=dtype)
        target = (host[..., 1], host[..., 0].clone(), host.movedim(-1, 0)[0])[how]
        target.copy_(s[i].detach())
        return OnHost(target)

    return act


@operation
def clone(c: Choices) -> Act:
    i = c.place()
    layout = c.of(_FORMATS[: 3 if c[i].dim() == 4 else 2])
    return lambda s: s[i].clone(memory_format=layout)


@operation
def contiguous(c: Choices) -> Act:
    i = c.place()
    return lambda s: s[i].contiguous()


@operation
def zeros_like(c: Choices) -> Act:
    i = c.place(laid_out_alike)
    dtype = c.of((None, torch.float16, torch.int32))
    layout = c.of(_FORMATS[:2])
    return lambda s: torch.zeros_like(s[i], dtype=dtype, memory_format=layout)


@operation
def empty_and_copy(c: Choices) -> Act:
    i = c.place(laid_out_alike)
    how = c.below(3)

    def act(s: Side) -> Any:
        made = (torch.empty_like, torch.Tensor.new_empty, torch.empty)[how]
        arguments = (s[i],) if how == 0 else (s[i], s[i].shape) if how == 1 else (s[i].shape,)
        options: dict[str, Any] = {"device": s.device} if how == 2 else {}
        return made(*arguments, **options).detach().copy_(s[i].detach())

    return act


@operation
def item(c: Choices) -> Act:
    i = c.place(lambda x: x.numel() == 1) if c.rarely() else c.place(filled)
    return lambda s: s[i].detach().reshape(-1)[-1].item()


@operation
def to_list(c: Choices) -> Act:
    i = c.place()
    return lambda s: s[i].tolist()


@operation
def truth(c: Choices) -> Act:
    i = c.place()
    how = c.below(5)
    if how == 0:
        return lambda s: bool(s[i])  # of more than one element: an error
    if how == 1:
        return lambda s: [bool(s[i].any()), len(s[i]) if s[i].dim() else None]
    if how == 2:
        return lambda s: int(s[i].sum().real)
    return (lambda s: 2 in s[i]) if how == 3 else (lambda s: [one.tolist() for one in s[i]])


@operation
def to_numpy(c: Choices) -> Act:
    i = c.place(lambda x: x.dtype != torch.bfloat16)
    return lambda s: s.on_host(i).resolve_conj().numpy().tobytes()


@operation
def complex_parts(c: Choices) -> Act:
    i = c.place(inexact)
    return lambda s: s[i].to(torch.complex64).conj().resolve_conj()


@operation
def printed(c: Choices) -> Act:
    i = c.place(real)
    return lambda s: str(s[i].detach()).replace(f", device='{s.device}:0'", "").split()[:3]


@operation
def same_storage(c: Choices) -> Act:
    i, j = c.place(), c.place()
    return lambda s: [
        s[i].is_set_to(s[j]),
        s[i].is_contiguous(),
        s[i].element_size(),
        s[i].is_nonzero() if s[i].numel() == 1 else None,
    ]


@operation
def deep_copy(c: Choices) -> Act:
    i = c.place(is_leaf)

    def act(s: Side) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the host's tensors are copied by a class that torch calls deprecated
            return copy.deepcopy(s[i])

    return act
