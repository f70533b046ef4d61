"""Indexing, gathering, sorting, joining."""

from __future__ import annotations

from typing import Any

import torch

from npu_programs.choices import Act, Choices, Side, both, filled, floating, inexact, numeric, ranked, real
from npu_programs.operations import operation


@operation
def index(c: Choices) -> Act:
    i = c.place(both(ranked(1), filled))
    how, salt, size = c.below(8), c.below(256), c[i].size(0)

    def act(s: Side) -> Any:
        x = s[i]
        number = s.whole((2, 2), size, salt)
        alternatives: list[Any] = [
            number,
            number.cpu(),
            number - size,
            (None, number[0]),
            (Ellipsis, s.whole((2,), x.size(-1), salt)),
            s.new((size,), torch.bool, salt),
            s.new(x.shape, torch.bool, salt).cpu(),
            (number, slice(None)) if x.dim() > 1 else number,
        ]
        return x[alternatives[how]]

    return act


@operation
def index_two(c: Choices) -> Act:
    i = c.place(both(ranked(2), filled))
    a, b, salt, outside = c[i].size(0), c[i].size(1), c.below(256), c.rarely()
    return lambda s: s[i][s.whole((3,), a, salt) + (9 if outside else 0), s.whole((2, 1), b, salt)]


@operation
def index_plain(c: Choices) -> Act:
    i = c.place(both(ranked(1), filled))
    keys = ([-1], (..., None), slice(1, None), (None, 0), (slice(None, None, 2), None), [0, 0], True, -1)
    key = c.of(keys)
    return lambda s: s[i][key]


@operation
def index_put(c: Choices) -> Act:
    i = c.place(both(ranked(1), filled))
    salt, size = c.below(256), c[i].size(0)
    return lambda s: s[i].index_put((s.whole((2,), size, salt),), s.new((1,), s[i].dtype, salt), accumulate=True)


@operation
def gather(c: Choices) -> Act:
    i = c.place(both(ranked(1), filled))
    d, salt = c.dim(c[i]), c.below(256)
    size = c[i].size(d)
    narrow = c.flag()
    return lambda s: s[i].gather(d, s.whole(s[i].shape, size + (9 if salt == 77 else 0), salt)[: 1 if narrow else None])


@operation
def take_along(c: Choices) -> Act:
    i = c.place(both(ranked(1), filled))
    salt = c.below(256)
    return lambda s: (
        s[i].take(s.whole((2, 2), s[i].numel(), salt)),
        s[i].take_along_dim(s.whole(s[i].shape, 1, 0), -1),
    )


@operation
def scatter(c: Choices) -> Act:
    i = c.place(both(ranked(1), filled))
    d, salt, how = c.dim(c[i]), c.below(256), c.below(3)
    size = c[i].size(d)

    def act(s: Side) -> Any:
        number = s.whole(s[i].shape, size, salt)
        source = s.new(s[i].shape, s[i].dtype, salt)
        if how == 0:
            return s[i].scatter(d, number, source)
        return s[i].scatter_add(d, number, source) if how == 1 else s[i].scatter(d, number, 1)

    return act


@operation
def index_select(c: Choices) -> Act:
    i = c.place(both(ranked(1), filled))
    d, salt, dtype = c.dim(c[i]), c.below(256), c.of((torch.int64, torch.int32))
    size = c[i].size(d)
    return lambda s: s[i].index_select(d, s.whole((3,), size, salt, dtype))


@operation
def index_add(c: Choices) -> Act:
    i = c.place(both(ranked(1), filled))
    d, salt = c.dim(c[i]), c.below(256)
    size = c[i].size(d)
    return lambda s: s[i].index_add(d, s.whole((size,), size, salt), s[i])


@operation
def masked(c: Choices) -> Act:
    i = c.place()
    salt, how = c.below(256), c.below(3)

    def act(s: Side) -> Any:
        mask = s.new(s[i].shape, torch.bool, salt)
        if how == 0:
            return s[i].masked_select(mask)
        return s[i].masked_fill(mask, 2) if how == 1 else s[i].masked_scatter(mask, s[i])

    return act


@operation
def nonzero(c: Choices) -> Act:
    i = c.place()
    how = c.below(4)
    if how == 0:
        return lambda s: s[i].nonzero(as_tuple=True)
    if how == 1:
        return lambda s: torch.argwhere(s[i])
    return (lambda s: s[i].count_nonzero()) if how == 2 else (lambda s: s[i].nonzero())


@operation
def unique(c: Choices) -> Act:
    i = c.place(real)
    how = c.below(3)
    if how == 0:
        return lambda s: s[i].unique()
    if how == 1:
        return lambda s: torch.unique(s[i], return_inverse=True, return_counts=True)
    return lambda s: torch.unique_consecutive(s[i])


@operation
def sort(c: Choices) -> Act:
    i = c.place(real)
    d, descending = c.dim(c[i]), c.flag()
    return lambda s: s[i].sort(dim=d, descending=descending, stable=True)


@operation
def argsort(c: Choices) -> Act:
    i = c.place(real)
    d = c.dim(c[i])
    return lambda s: s[i].argsort(dim=d, stable=True)


@operation
def topk(c: Choices) -> Act:
    i = c.place(both(ranked(1), real, numeric))
    d, largest = c.dim(c[i]), c.flag()
    k = c.below(c[i].size(d) + 1)
    return lambda s: s[i].topk(k, d, largest)


@operation
def kthvalue(c: Choices) -> Act:
    i = c.place(both(ranked(1), real, numeric, filled))
    d = c.dim(c[i])
    k = 1 + c.below(c[i].size(d))
    return lambda s: s[i].kthvalue(k, d)


@operation
def searchsorted(c: Choices) -> Act:
    i = c.place(both(real, numeric, filled))
    return lambda s: torch.searchsorted(s[i].flatten().sort()[0], s[i].contiguous())


@operation
def bincount(c: Choices) -> Act:
    i = c.place(lambda x: x.dim() == 1 and x.dtype in (torch.int64, torch.int32, torch.uint8))
    return lambda s: s[i].abs().bincount()


@operation
def cat(c: Choices) -> Act:
    i = c.place(ranked(1))
    d = c.dim(c[i])
    j = c.place(lambda x: x.shape == c[i].shape)
    k = c.place(lambda x: x.shape == c[i].shape)
    return lambda s: torch.cat([s[i], s[j], s[k]], d)


@operation
def stack(c: Choices) -> Act:
    i = c.place(ranked(0, 4))
    d = c.below(c[i].dim() + 1)
    j = c.place(lambda x: x.shape == c[i].shape)
    return lambda s: torch.stack([s[i], s[j]], d)


@operation
def other_joins(c: Choices) -> Act:
    i = c.place(ranked(1, 3))
    join = c.of((torch.hstack, torch.vstack, torch.dstack, torch.column_stack))
    return lambda s: join([s[i], s[i]])


@operation
def cartesian(c: Choices) -> Act:
    i = c.place(both(ranked(1, 1), inexact))
    how = c.below(3)
    if how == 0:
        return lambda s: torch.combinations(s[i])
    return (lambda s: torch.outer(s[i], s[i])) if how == 1 else (lambda s: torch.diag(s[i]))


@operation
def block_diag(c: Choices) -> Act:
    i = c.place(ranked(0, 2))
    return lambda s: torch.block_diag(s[i], s[i])


@operation
def bucketize(c: Choices) -> Act:
    i = c.place(floating)
    return lambda s: torch.bucketize(s[i], torch.tensor([-1.0, 0.0, 1.0], dtype=s[i].dtype).to(s.device))
