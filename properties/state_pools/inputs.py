"""From a case to tensors: a layer's convolution, the tokens that steps bring, and where an element of an output is."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from npudiff.draw.data import Stream
from npudiff.properties.state_pools.case import StatePoolsCase
from npudiff.reference.state_pools import LayerTokens, StatePoolsHistory, StatePoolsInputs, new_rows
from npudiff.reference.state_pools.history import coordinates_of

POISON = 512.0
"""What memory holds that nobody has written: finite, since what is cleared is multiplied by 0 somewhere, and far above
what a state holds."""

_LENGTHS = {"usual": 1.0, "tiny": 2.0**-10}
"""Of queries and keys."""

_STATES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def open_inputs(case: StatePoolsCase) -> StatePoolsInputs:
    """Build what the pools of a case are opened with; its steps are not looked at.

    Behind the convolution keys are about as long as 1, so that states neither grow nor vanish where no call normalises
    them. Where calls do, they may be tiny.
    """
    keys = 2 * case.key_heads * case.key_dim
    size = torch.full((case.channels,), case.width**-0.5)
    size[:keys] *= case.key_dim**-0.5 * _LENGTHS[case.keys]
    weight = case.normal("weight", case.width, case.channels) * size
    bias = case.normal("bias", case.channels) * size / 2
    return StatePoolsInputs(
        weight=weight.to(torch.bfloat16),
        bias=bias.to(torch.bfloat16) if case.biased else None,
        activation=case.activation,
        rounding=case.rounding,
        key_heads=case.key_heads,
        heads=case.heads,
        key_dim=case.key_dim,
        value_dim=case.value_dim,
        scale=case.key_dim**-0.5,
        state_dtype=_STATES[case.state_dtype],
        raw=case.raw,
        chunked=case.chunked,
        requests=case.requests,
        drafts=case.drafts,
        poison=POISON,
    )


def tokens_of(case: StatePoolsCase, number: int, rows: int) -> LayerTokens:
    """Build what a step brings, by its number in the trace."""
    gates = {"none": 0, "head": case.heads, "channel": case.heads * case.key_dim}[case.gates]
    widths = (case.channels, case.heads, gates)
    numbers = Stream(case.seed, f"step {number}").normal((rows * sum(widths),), torch.float32)
    mixed, beta, gate = torch.split(numbers, [rows * width for width in widths])
    if not gates:
        decays: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    elif case.gates == "head":
        decays = (_decays(case, gate).view(rows, case.heads), None)
    else:
        decays = (None, _decays(case, gate).view(rows, case.heads, case.key_dim))
    return LayerTokens(
        mixed.view(rows, case.channels).to(torch.bfloat16),
        (beta if case.raw else torch.sigmoid(beta)).view(rows, case.heads).to(torch.bfloat16),
        *decays,
    )


def _decays(case: StatePoolsCase, numbers: torch.Tensor) -> torch.Tensor:
    even = torch.sigmoid(1.6 * numbers)
    return {"usual": -even, "weak": -0.01 * even, "strong": -2 - 4 * even}[case.decays]


def build_inputs(case: StatePoolsCase) -> StatePoolsHistory:
    """Build the pools of a case, and the tokens that each of its steps brings."""
    steps = tuple(
        (step, tokens_of(case, number, new_rows(step, case.drafts))) for number, step in enumerate(case.steps)
    )
    return StatePoolsHistory(open_inputs(case), steps)


def coordinates(inputs: StatePoolsHistory, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output of the last step; request and token of a padded row are -1."""
    rows, live = coordinates_of(inputs)
    pools = inputs.pools
    channel, head = torch.arange(pools.weight.shape[1]), torch.arange(pools.heads)
    element, column = torch.arange(pools.value_dim), torch.arange(pools.key_dim)
    request, token = torch.tensor(rows, dtype=torch.int64).view(-1, 2).unbind(1)
    resident = torch.tensor(live, dtype=torch.int64)
    if output == "convolved":
        return {"request": request[:, None], "token": token[:, None], "channel": channel[None]}
    if output == "output":
        return {"request": request[:, None, None], "token": token[:, None, None], "head": head[None, :, None],
                "element": element[None, None]}  # fmt: skip
    if output == "lines":
        before = torch.arange(1 - pools.width, 0)
        return {"request": resident[:, None, None], "row": before[None, :, None], "channel": channel[None, None]}
    if output == "states":
        return {"request": resident[:, None, None, None], "head": head[None, :, None, None],
                "row": element[None, None, :, None], "column": column[None, None, None]}  # fmt: skip
    return {}
