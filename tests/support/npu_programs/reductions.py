"""Reductions and scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from npu_programs.choices import Act, Choices, both, filled, floating, inexact, numeric, ranked, real, single
from npu_programs.operations import named

_WHOLE: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], bool]]] = {
    "total": (torch.sum, lambda _: True),
    "average": (torch.mean, inexact),
    "largest": (torch.max, both(real, filled)),
    "smallest": (torch.min, both(real, filled)),
    "product": (torch.prod, lambda _: True),
    "argmax": (torch.argmax, both(real, numeric, filled)),
    "any": (torch.any, lambda _: True),
    "all": (torch.all, lambda _: True),
    "deviation": (lambda x: x.std(), inexact),
    "norm": (torch.linalg.vector_norm, inexact),
    "median": (torch.median, both(real, numeric)),
    "aminmax": (torch.aminmax, both(real, numeric, filled)),
    "trace": (torch.trace, both(ranked(2, 2), numeric)),
    "distance": (lambda x: torch.dist(x, x * 2), floating),
    "histogram": (lambda x: torch.histc(x, 4, -1, 1), single),
    "sum_to_size": (lambda x: x.sum_to_size(x.shape[-1:]) if x.dim() else x, inexact),
    "total_dtype": (lambda x: x.sum(dtype=torch.float64), real),
}
_ALONG: dict[str, tuple[Callable[[Tensor, int, bool], Any], Callable[[Tensor], bool]]] = {
    "sum": (lambda x, d, k: x.sum(d, keepdim=k), lambda _: True),
    "mean": (lambda x, d, k: x.mean(d, keepdim=k), inexact),
    "amax": (lambda x, d, k: x.amax(d, keepdim=k), real),
    "max": (lambda x, d, k: x.max(d, keepdim=k), real),
    "min": (lambda x, d, k: x.min(d, keepdim=k), real),
    "std": (lambda x, d, k: x.std(d, keepdim=k), inexact),
    "var_mean": (lambda x, d, k: torch.var_mean(x, d, keepdim=k, correction=0), inexact),
    "vector_norm": (lambda x, d, k: x.norm(2, d, keepdim=k), inexact),
    "logsumexp": (lambda x, d, k: x.logsumexp(d, keepdim=k), floating),
    "any_along": (lambda x, d, k: x.any(d, keepdim=k), lambda _: True),
    "all_along": (lambda x, d, k: x.all(d, keepdim=k), lambda _: True),
    "prod": (lambda x, d, k: x.prod(d, keepdim=k), lambda _: True),
    "argmin": (lambda x, d, k: x.argmin(d, keepdim=k), both(real, numeric)),
    "median_along": (lambda x, d, k: x.median(d, keepdim=k), both(real, numeric)),
    "nansum": (lambda x, d, k: x.nansum(d, keepdim=k), real),
    "cumsum": (lambda x, d, k: x.cumsum(d), lambda _: True),
    "cumprod": (lambda x, d, k: x.cumprod(d), lambda _: True),
    "cummax": (lambda x, d, k: x.cummax(d), real),
    "logcumsumexp": (lambda x, d, k: x.logcumsumexp(d), floating),
    "softmax": (lambda x, d, k: x.softmax(d), floating),
    "log_softmax": (lambda x, d, k: x.log_softmax(d), floating),
    "softmax_dtype": (lambda x, d, k: x.softmax(d, dtype=torch.float32), floating),
    "diff": (lambda x, d, k: x.diff(dim=d) if x.dim() else x, numeric),
    "quantile": (lambda x, d, k: x.quantile(0.5, d, keepdim=k), single),
    "renorm": (lambda x, d, k: x.renorm(2, d, 1.0) if x.dim() > 1 else x, floating),
    "normalize": (lambda x, d, k: torch.nn.functional.normalize(x, dim=d), floating),
}


def _whole(name: str) -> None:
    act, wanted = _WHOLE[name]

    def choose(c: Choices) -> Act:
        i = c.place(wanted)
        return lambda s: act(s[i])

    choose.__module__ = __name__
    named(name, choose)


def _along(name: str) -> None:
    act, wanted = _ALONG[name]

    def choose(c: Choices) -> Act:
        i = c.place(both(wanted, filled)) if not c.rarely() else c.place(wanted)
        d, keep = c.dim(c[i]), c.flag()
        return lambda s: act(s[i], d, keep)

    choose.__module__ = __name__
    named(name, choose)


for _name in _WHOLE:
    _whole(_name)
for _name in _ALONG:
    _along(_name)
