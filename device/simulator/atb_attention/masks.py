"""Masks of ATB's attention: a template for causal attention, and what is added to scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from npudiff.device.simulator.errors import UndefinedBehaviour

if TYPE_CHECKING:
    from torch import Tensor

    from npudiff.device.simulator.argument_checks import ArgumentChecks

_TEMPLATE = 128

# float16: what a kernel adds. The difference of scores that it has to outweigh is not bounded; this is the smallest
# number in the tests of op-plugin.
_HIDING = -10000.0


def check_template(check: ArgumentChecks, mask: Tensor, query: Tensor) -> None:
    """Require the template of a causal mask: 0 where a query sees a key, above the diagonal what hides one.

    A kernel multiplies a bfloat16 template by -3e38, and adds a float16 one as it is, tile by tile along the diagonal.

    Parameters
    ----------
    check : ArgumentChecks
        Of the operator.
    mask : Tensor
        [128, 128] in the query's dtype; above the diagonal 1 in bfloat16, -10000 or less in float16.
    query : Tensor
        The query.

    Raises
    ------
    OperatorRejected
        Another shape or dtype.
    UndefinedBehaviour
        Another content, with which the operator gives wrong values and no error.
    """
    check.shape("mask", mask, (_TEMPLATE, _TEMPLATE), meaning="the template of a causal mask")
    check.same_dtype("mask", mask, "query", query)
    above = torch.ones(_TEMPLATE, _TEMPLATE, dtype=torch.bool).triu(1)
    hides = mask == 1 if mask.dtype == torch.bfloat16 else mask <= _HIDING
    if not torch.equal(hides, above) or mask.tril().ne(0).any():
        what = "1" if mask.dtype == torch.bfloat16 else f"{_HIDING:.0f} or less"
        wanted = f"{what} above the diagonal and 0 elsewhere"
        raise UndefinedBehaviour(f"{check.operator}: mask in {mask.dtype} must have {wanted}")
