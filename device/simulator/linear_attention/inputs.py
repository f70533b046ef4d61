"""What the chunked and the recurrent gated delta rule have in common: what is checked of tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks


@dataclass(frozen=True)
class Sizes:
    """Sizes of a call."""

    tokens: int
    heads: int
    """Of value."""
    key_dim: int
    value_dim: int


def checked_sizes(
    check: ArgumentChecks, query: Tensor, key: Tensor, value: Tensor, beta: Tensor, most_heads: int, largest_dim: int
) -> Sizes:
    """Return the sizes of query and key [T, Nk, Dk], value [T, Nv, Dv] and beta [T, Nv], all bfloat16.

    Raises
    ------
    OperatorRejected
        Dtype or shape is not one of these, there are more heads or larger ones than an operator takes, or Nk does not
        divide Nv.
    """
    for argument, tensor in (("query", query), ("key", key), ("value", value), ("beta", beta)):
        check.dtype(argument, tensor, "bfloat16")
    tokens, heads, value_dim = value.shape
    check.shape("query", query, (tokens, -1, -1), meaning="[T, Nk, Dk]")
    check.shape("key", key, tuple(query.shape), meaning="[T, Nk, Dk]")
    _, key_heads, key_dim = key.shape
    for argument, count, most in (
        ("key", key_heads, most_heads),
        ("value", heads, most_heads),
        ("key", key_dim, largest_dim),
        ("value", value_dim, largest_dim),
    ):
        check.between(argument, count, 1, most)
    if heads % key_heads:
        raise check.rejected("value", f"of {heads} heads", f"a multiple of {key_heads}, the heads of key")
    check.shape("beta", beta, (tokens, heads), meaning="[T, Nv]")
    return Sizes(tokens, heads, key_dim, value_dim)


def given(tensor: Tensor | None) -> Tensor:
    """Return an optional tensor that a check has required.

    Raises
    ------
    TypeError
        The check did not.
    """
    if tensor is None:
        raise TypeError("a tensor that was checked is missing")
    return tensor
