"""Views: other sizes, strides and offsets over the same memory."""

from __future__ import annotations

import torch
from torch import Tensor

from npu_programs.choices import Act, Choices, both, filled, numeric, ranked
from npu_programs.operations import named, operation


def _shapes(tensor: Tensor) -> list[tuple[int, ...]]:
    sizes = tuple(tensor.shape)
    shapes = [(-1,) if tensor.numel() else (0,), sizes[::-1], (1, *sizes), (*sizes, 1), sizes]
    if len(sizes) > 1:
        shapes += [(sizes[0] * sizes[1], *sizes[2:]), (*sizes[:-2], sizes[-2] * sizes[-1])]
    even = [place for place, size in enumerate(sizes) if size in (4, 2)]
    shapes += [(*sizes[:place], 2, sizes[place] // 2, *sizes[place + 1 :]) for place in even]
    return shapes


@operation
def view(c: Choices) -> Act:
    i = c.place()
    sizes = c.of(_shapes(c[i]))
    return lambda s: s[i].view(sizes)


@operation
def reshape(c: Choices) -> Act:
    i = c.place()
    sizes = c.of(_shapes(c[i]))
    return lambda s: s[i].reshape(sizes)


@operation
def transpose(c: Choices) -> Act:
    i = c.place()
    a, b = c.dim(c[i]), c.dim(c[i])
    return lambda s: s[i].transpose(a, b)


@operation
def permute(c: Choices) -> Act:
    i = c.place(ranked(2))
    rest = list(range(c[i].dim()))
    order = [rest.pop(c.below(len(rest))) for _ in range(len(rest))]
    return lambda s: s[i].permute(order)


@operation
def slicing(c: Choices) -> Act:
    i = c.place(ranked(1))
    d = c.dim(c[i])
    size = c[i].size(d)
    start, stop, step = c.below(size + 2), size + 1 - c.below(size + 2), 1 + c.below(3)
    return lambda s: torch.ops.aten.slice.Tensor(s[i], d, start, stop, step)


@operation
def select(c: Choices) -> Act:
    i = c.place(both(ranked(1), filled))
    d = c.dim(c[i])
    size = c[i].size(d)
    n = c.below(2 * size) - size + (size if c.rarely() else 0)
    return lambda s: s[i].select(d, n)


@operation
def narrow(c: Choices) -> Act:
    i = c.place(ranked(1))
    d = c.dim(c[i])
    start = c.below(c[i].size(d) + 1)
    length = c.below(c[i].size(d) - start + 1)
    return lambda s: s[i].narrow(d, start, length)


@operation
def unfold(c: Choices) -> Act:
    i = c.place(both(ranked(1, 4), filled))
    d = c.dim(c[i])
    size, step = 1 + c.below(c[i].size(d)), 1 + c.below(2)
    return lambda s: s[i].unfold(d, size, step)


@operation
def expand(c: Choices) -> Act:
    i = c.place(ranked(0, 3))
    wide = [2 + c.below(2) if size == 1 else -1 for size in c[i].shape]
    sizes = [2, *wide] if c.flag() else wide
    return lambda s: s[i].expand(sizes)


@operation
def squeeze(c: Choices) -> Act:
    i = c.place()
    d = c.dim(c[i])
    return (lambda s: s[i].squeeze()) if c.flag() else (lambda s: s[i].squeeze(d))


@operation
def unsqueeze(c: Choices) -> Act:
    i = c.place(ranked(0, 4))
    d = c.below(c[i].dim() + 1)
    return lambda s: s[i].unsqueeze(d)


@operation
def as_strided(c: Choices) -> Act:
    i = c.place(filled)
    first = c[i].storage_offset()
    there = c[i].numel() if c[i].is_contiguous() else 1  # never reads what nobody wrote
    strides = [c.of((1, 2, 0, 3)) for _ in range(c.below(3) + 1)]
    sizes = []
    for stride in strides:
        most = 5 if stride == 0 else 1 + (there - 1) // stride
        sizes.append(1 + c.below(min(most, 5)))
        there -= (sizes[-1] - 1) * stride
    offset = c.of((None, first, first + there - 1))
    return lambda s: s[i].as_strided(sizes, strides, offset)


@operation
def chunk(c: Choices) -> Act:
    i = c.place(ranked(1))
    d, count = c.dim(c[i]), 1 + c.below(3)
    return lambda s: s[i].chunk(count, d)


@operation
def split(c: Choices) -> Act:
    i = c.place(ranked(1))
    d = c.dim(c[i])
    size = c[i].size(d)
    if c.flag():
        return lambda s: s[i].split(max(size // 2, 1), d)
    first = c.below(size + 1)
    return lambda s: s[i].split([first, size - first], d)


@operation
def tensor_split(c: Choices) -> Act:
    i = c.place(ranked(1))
    d, count = c.dim(c[i]), 1 + c.below(4)
    return lambda s: s[i].tensor_split(count, d)


@operation
def unbind(c: Choices) -> Act:
    i = c.place(ranked(1))
    d = c.dim(c[i])
    return lambda s: s[i].unbind(d)


@operation
def diagonal(c: Choices) -> Act:
    i = c.place(ranked(2))
    offset = c.below(3) - 1
    return lambda s: s[i].diagonal(offset, 0, -1)


@operation
def view_dtype(c: Choices) -> Act:
    i = c.place(numeric)
    others = {1: (torch.uint8, torch.int8), 2: (torch.int16, torch.float16, torch.uint8), 4: (torch.int32, torch.uint8)}
    dtype = c.of(others.get(c[i].itemsize, (torch.int64, torch.float32, torch.int8)))
    return lambda s: s[i].view(dtype)


@operation
def view_as_real(c: Choices) -> Act:
    i = c.place(torch.is_complex)
    return lambda s: torch.view_as_real(s[i])


@operation
def view_as_complex(c: Choices) -> Act:
    i = c.place(lambda x: x.dtype == torch.float32 and x.dim() > 0 and x.size(-1) == 2)
    return lambda s: torch.view_as_complex(s[i])


@operation
def real_and_imaginary(c: Choices) -> Act:
    i = c.place(torch.is_complex)
    part = c.of((torch.real, torch.imag, torch.conj, torch.Tensor.conj_physical, torch.adjoint))
    return lambda s: part(s[i])


@operation
def unflatten(c: Choices) -> Act:
    i = c.place(lambda x: x.dim() in {1, 2, 3} and x.size(-1) == 4)
    return lambda s: s[i].unflatten(-1, (2, -1))


_PLAIN = {
    "detach": torch.Tensor.detach,
    "flatten": torch.Tensor.flatten,
    "alias": lambda x: torch.ops.aten.alias(x),
    "view_as": lambda x: x.view_as(x),
    "ravel": torch.Tensor.ravel,
    "movedim": lambda x: x.movedim(0, -1) if x.dim() else x,
    "mt": lambda x: x.mT if x.dim() > 1 else x,
    "swapaxes": lambda x: x.swapaxes(0, -1) if x.dim() else x,
    "expand_as": lambda x: x[:1].expand_as(x) if x.dim() else x,
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x, x[:1]) if x.dim() else x,
    "atleast": lambda x: (torch.atleast_1d(x), torch.atleast_3d(x)),
    "whole_slice": lambda x: (x[:], x[...], x[None]),
}


def _plain(name: str) -> None:
    def choose(c: Choices) -> Act:
        i = c.place(ranked(0, 4))
        return lambda s: _PLAIN[name](s[i])

    choose.__module__ = __name__
    named(name, choose)


for _name in _PLAIN:
    _plain(_name)
