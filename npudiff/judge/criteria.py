"""What the published acceptance criteria would say of the same outputs.

They are reported, because people are asked for them; they never decide. Each is a few lines with its source.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from npudiff.model.component import OutputComparison

_RELATIVE_FLOOR = 1e-7
"""Added to |golden| in relative errors, in every CANN standard."""

_SINGLE_BENCHMARK = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-13}
_MIXED = {  # relative tolerance, absolute tolerance, floor of the largest absolute error
    torch.float16: (2.0**-9, 2.0**-9, 1e-1),
    torch.bfloat16: (2.0**-6, 2.0**-6, 1.0),
    torch.float32: (2.0**-10, 2.0**-16, 1e-2),
}
_COSINE = 0.99

SINGLE, MIXED, COSINE = "CANN single benchmark", "CANN mixed tolerance", "cosine"


@dataclass(frozen=True)
class Verdict:
    """What one published criterion says."""

    criterion: str
    """Its name."""
    passes: bool
    """Its verdict."""
    detail: str
    """The figures behind it."""


def published_verdicts(output: OutputComparison) -> tuple[Verdict, ...]:
    """Return the verdicts on one output; empty for outputs that are not floats or were not compared."""
    if output.actual is None or output.value is None or output.bound is None:
        return ()
    if output.actual.dtype not in _MIXED:
        return ()
    specified = ~torch.isposinf(output.bound)
    actual = output.actual.to(torch.float64)[specified]
    golden = output.value.to(torch.float64)[specified]
    finite = actual.isfinite() & golden.isfinite()
    if not bool(((actual == golden) | finite).all()):
        return tuple(Verdict(name, False, "non-finite values differ") for name in (SINGLE, MIXED, COSINE))
    actual, golden = actual[finite], golden[finite]
    if not actual.numel():
        return ()
    dtype = output.actual.dtype
    return (_single(actual, golden, dtype), _mixed(actual, golden, dtype), _cosine(actual, golden))


def _single(actual: torch.Tensor, golden: torch.Tensor, dtype: torch.dtype) -> Verdict:
    """CANN community standard, single benchmark: mean relative error below T and largest below 10 T."""
    relative = (actual - golden).abs() / (golden.abs() + _RELATIVE_FLOOR)
    mean, largest = float(relative.mean()), float(relative.max())
    limit = _SINGLE_BENCHMARK[dtype]
    detail = f"mean relative error {mean:.2g} of {limit:.2g}, largest {largest:.2g} of {10 * limit:.2g}"
    return Verdict(SINGLE, mean < limit and largest < 10 * limit, detail)


def _mixed(actual: torch.Tensor, golden: torch.Tensor, dtype: torch.dtype) -> Verdict:
    """CANN community standard, mixed tolerance: 99 % of elements within it, and a cap on the largest error.

    The cap is the larger of a floor and 32 units in the last place at the worst element.
    """
    relative, absolute, floor = _MIXED[dtype]
    error = (actual - golden).abs()
    matched = float((error <= absolute + relative * golden.abs()).double().mean())
    worst = int(error.argmax())
    exponent = torch.frexp(golden[worst].abs().clamp(min=torch.finfo(dtype).smallest_normal)).exponent
    cap = max(floor, 32 * torch.finfo(dtype).eps * 2.0 ** (int(exponent) - 1))
    detail = f"{matched:.2%} matched of 99 %, largest error {float(error[worst]):.2g} of {cap:.2g}"
    return Verdict(MIXED, matched >= 0.99 and float(error[worst]) <= cap, detail)


def _cosine(actual: torch.Tensor, golden: torch.Tensor) -> Verdict:
    """Dump comparison of msprobe: cosine similarity of the whole tensor."""
    norms = float(actual.norm() * golden.norm())
    cosine = float(torch.dot(actual, golden)) / norms if norms else 1.0
    return Verdict(COSINE, cosine > _COSINE, f"{cosine:.6f} of {_COSINE}")
