"""What a pair of state pools is given, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from npudiff.reference.views import moved_inputs


@dataclass(frozen=True)
class StatePoolsInputs:
    """What the pools of one layer are opened with: its convolution, and the sizes of its states."""

    weight: torch.Tensor
    """bfloat16 ``[width, channels]``: the last row meets the token itself. Channels are those of all queries, all keys,
    and all values: ``2 * key_heads * key_dim + heads * value_dim``."""
    bias: torch.Tensor | None
    """bfloat16 ``[channels]``."""
    activation: bool
    """Whether SiLU is applied behind the convolution."""
    rounding: str
    """Where a device may round in it, one of ``reference.causal_conv.ROUNDINGS``."""
    key_heads: int
    heads: int
    """Value heads, a multiple of the key heads; head ``h`` goes with key head ``h // (heads // key_heads)``."""
    key_dim: int
    value_dim: int
    scale: float
    """Factor of queries."""
    state_dtype: torch.dtype
    """bfloat16 or float32, of the pool of recurrent states; that of the convolution is bfloat16. A state keeps this
    from step to step. So vllm-ascend's operator for prompts, which takes a float32 state as bfloat16 (``ops/gdn.py``
    126), is held to bfloat16 pools."""
    raw: bool
    """Whether queries and keys are normalised, and beta is given before its sigmoid, as ``GatedDeltaInputs.raw``."""
    chunked: bool
    """Whether ``extend`` computes in chunks with products in bfloat16, as ``GatedDeltaInputs.chunked``."""
    requests: int
    """Requests that are live at a time, at most."""
    drafts: int
    """Tokens of each request in a verification, the last one that was certain included."""
    poison: float
    """What memory holds that nobody has written."""

    @property
    def width(self) -> int:
        """Tokens under the convolution."""
        return len(self.weight)

    def lines(self, count: int, rows: int) -> torch.Tensor:
        """Return a pool of lines of the convolution, ``[count, rows, channels]``, full of poison."""
        shape = (count, rows, self.weight.shape[1])
        return torch.full(shape, self.poison, dtype=self.weight.dtype, device=self.weight.device)

    def states(self, count: int) -> torch.Tensor:
        """Return a pool of recurrent states, ``[count, heads, value_dim, key_dim]``, full of poison."""
        shape = (count, self.heads, self.value_dim, self.key_dim)
        return torch.full(shape, self.poison, dtype=self.state_dtype, device=self.weight.device)

    def split(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries and keys ``[rows, key_heads, key_dim]`` and values ``[rows, heads, value_dim]`` of rows."""
        keys = self.key_heads * self.key_dim
        query, key, value = torch.split(rows, [keys, keys, self.heads * self.value_dim], dim=1)
        by_key_head = (len(rows), self.key_heads, self.key_dim)
        return (
            query.reshape(by_key_head),
            key.reshape(by_key_head),
            value.reshape(len(rows), self.heads, self.value_dim),
        )

    def to(self, device: str | torch.device) -> StatePoolsInputs:
        """Return the same inputs on ``device``."""
        return moved_inputs(self, device, copies=())


@dataclass(frozen=True)
class LayerTokens:
    """What a layer is given of some tokens."""

    mixed: torch.Tensor
    """bfloat16 ``[rows, channels]``: queries, keys and values before the convolution."""
    beta: torch.Tensor
    """bfloat16 ``[rows, heads]``."""
    gate: torch.Tensor | None = None
    """float32 ``[rows, heads]``: logarithm of the decay of a state before a token; None for none."""
    channel_gate: torch.Tensor | None = None
    """float32 ``[rows, heads, key_dim]``: the same of the columns of a state."""

    def taken(self, rows: slice) -> LayerTokens:
        """Return some of the tokens, without a copy."""
        gates = (None if one is None else one[rows] for one in (self.gate, self.channel_gate))
        return LayerTokens(self.mixed[rows], self.beta[rows], *gates)

    def copy(self) -> LayerTokens:
        """Return tokens that may be written to."""
        gates = (None if one is None else one.clone() for one in (self.gate, self.channel_gate))
        return LayerTokens(self.mixed.clone(), self.beta.clone(), *gates)

    def to(self, device: str | torch.device) -> LayerTokens:
        """Return the same tokens on ``device``."""
        return moved_inputs(self, device, copies=())


Outputs = Mapping[str, torch.Tensor]


class StatePools(Protocol):
    """What an implementation opens: pools of both kinds of state, the requests in them, and the layer itself.

    Requests are numbers that the caller chooses; a number is used again when its request is gone. Each is in a slot
    that the implementation chooses. Tokens come on the host. ``extend``, ``decode`` and ``verify`` return

    - ``convolved``: bfloat16 ``[rows, channels]``, what the convolution makes of the rows, before anything is
      normalised. The rule is judged by what a device has made of them, so that no error is counted twice;
    - ``output``: bfloat16 ``[rows, heads, value_dim]``, what the rule gives.

    Nothing is said of padded rows, the last ones of a batch, and they change no request's state.
    """

    def extend(self, requests: Sequence[int], lengths: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Append tokens to some requests in one batch: whole prompts, chunks of prompts, single tokens.

        A request that is not live is admitted, and begins with zeros, whatever its slot holds.
        """

    def decode(self, requests: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Append one token to each of some requests; rows beyond them are padding of a graph. There may be none."""

    def verify(self, requests: Sequence[int], tokens: LayerTokens) -> Outputs:
        """Run ``drafts`` tokens of each request, one request after the other; rows beyond them are padding.

        ``accept`` always follows.
        """

    def accept(self, accepted: Sequence[int]) -> None:
        """Keep the first ``accepted`` tokens of each request that was just verified, and forget the others.

        0 leaves a request as it was before. Backends have no such call: their first token is certain. What cannot do it
        says ``nothing_accepted`` is False.
        """

    def fork(self, source: int, request: int) -> None:
        """Admit a request that begins as another one is now: a prefix that both have."""

    def free(self, request: int) -> None:
        """Forget a request."""

    def evict(self, request: int) -> None:
        """Keep the states of a request on the host, and give its slot up."""

    def restore(self, request: int) -> None:
        """Give a request that was evicted a slot, and bring its states back."""

    def states(self, requests: Sequence[int]) -> Outputs:
        """Return the states of some live requests, behind their last token.

        Returns
        -------
        mapping
            ``lines``: bfloat16 ``[requests, width - 1, channels]``, the last rows in front of the convolution, the
            oldest first, zeros where there was none. ``states``: ``[requests, heads, value_dim, key_dim]`` in
            ``state_dtype``.
        """
