"""Where the queries and the keys of each sequence lie, in all layouts; the checks of layouts, lengths and tables.

A query is [B, S1, N, D] or [T1, N, D], a key [B, S2, 1, D], [T2, 1, D], or pages [blocks, block size, 1, D]. Lengths
are device tensors, whose values no host code sees: those of a T axis are cumulative, all others per sequence. Sources:
the documentation of the operators in op-plugin and the tiling checks in vllm-ascend's copies.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import DeviceFault, ErrorCode
from npudiff.device.simulator.profiles import CannProfile

NO_BAND = 2**63 - 1
"""The only value of pre_tokens and next_tokens."""

CAUSAL = 3
"""The sparse mode in which a query sees no key behind it; in mode 0 it sees all."""

_PAGED = "PA_BSND"
_RANKS = {"BSND": 4, "TND": 3, _PAGED: 4}
_BLOCK_SIZES = range(16, 1025, 16)


@dataclass(frozen=True)
class Sequence:
    """One sequence of a call."""

    batch: int
    rows: range
    """Its queries, as rows of the query without heads."""
    keys: int
    """How many keys it has."""
    first_key: int
    """The row of the first of them; 0 with pages."""

    def visible(self, mode: int) -> Tensor:
        """Return int64 [rows], how many keys from the first on each query may see; 0 or more."""
        if mode != CAUSAL:
            return torch.full((len(self.rows),), self.keys)
        return (torch.arange(len(self.rows)) + (self.keys - len(self.rows) + 1)).clamp(min=0)


@dataclass(frozen=True)
class Batch:
    """The arguments of a call that say where its sequences are."""

    check: ArgumentChecks
    query: Tensor
    key: Tensor
    layout_query: str
    layout_key: str
    query_lengths: Tensor | None
    key_lengths: Tensor | None
    block_table: Tensor | None
    key_name: str
    """How the schema names keys in ``layout_`` and ``actual_seq_lengths_``: key or kv."""

    @property
    def paged(self) -> bool:
        """Whether keys are in pages."""
        return self.layout_key == _PAGED

    @property
    def packed(self) -> bool:
        """Whether queries have a T axis."""
        return self.layout_query == "TND"

    @property
    def row_shape(self) -> tuple[int, ...]:
        """[B, S1] or [T1], the axes of the query before its heads."""
        return tuple(self.query.shape[:-2])

    def check_host(self) -> None:
        """Raise what the host code and torch_npu's META raise: empty tensors, the layout of the query, its rank.

        Raises
        ------
        OperatorRejected
            With the wrapper's code.
        """
        for argument in ("query", "key"):
            self.check.not_empty(argument, getattr(self, argument), ErrorCode.WRAPPER)
        self.check.choice("layout_query", self.layout_query, ("BSND", "TND"), ErrorCode.WRAPPER)
        self.check.rank("query", self.query, _RANKS[self.layout_query], self.layout_query, ErrorCode.WRAPPER)

    def check_layouts(self, mode: int, pre_tokens: int, next_tokens: int, profile: CannProfile) -> None:
        """Refuse layouts, shapes, modes, lengths and tables that the operators do not have.

        Raises
        ------
        OperatorRejected
            Naming the argument.
        """
        layouts = (_PAGED, self.layout_query)
        self.check.choice(f"layout_{self.key_name}", self.layout_key, layouts)
        self.check.choice("sparse_mode", mode, (0, CAUSAL))
        self.check.choice("pre_tokens", pre_tokens, (NO_BAND,))
        self.check.choice("next_tokens", next_tokens, (NO_BAND,))
        self.check.rank("key", self.key, _RANKS[self.layout_key], self.layout_key)
        self.check.shape("key", self.key, (*[-1] * (self.key.dim() - 2), 1, -1), meaning="[..., 1, D]")
        if self.layout_key == "BSND" and len(self.key) != len(self.query):
            raise self.check.rejected("key", f"of shape {list(self.key.shape)}", f"{len(self.query)} sequences")
        if self.paged and self.key.shape[1] not in _BLOCK_SIZES:
            raise self.check.rejected("key", f"of block size {self.key.shape[1]}", "a multiple of 16 up to 1024")
        self._check_lengths()
        self._check_table()
        if profile.non_contiguous == "rejected":
            self.check.contiguous(query=self.query, key=self.key, code=ErrorCode.PARAMETER)
        elif profile.strided_keys == "rejected":
            self.check.contiguous(key=self.key, code=ErrorCode.PARAMETER)

    def _check_lengths(self) -> None:
        named = (
            ("actual_seq_lengths_query", self.query_lengths, self.packed),
            (f"actual_seq_lengths_{self.key_name}", self.key_lengths, self.layout_key != "BSND"),
        )
        for argument, lengths, needed in named:
            if lengths is not None:
                self.check.dtype(argument, lengths, "int32")
                self.check.shape(argument, lengths, (self.count,), meaning="[B]")
            elif needed:
                raise self.check.rejected(argument, None, "int32 [B] in this layout")

    def _check_table(self) -> None:
        if not self.paged:
            if self.block_table is not None:
                raise self.check.rejected("block_table", "given", f"None without {_PAGED}")
            return
        if self.block_table is None:
            raise self.check.rejected("block_table", None, f"int32 [B, blocks of a sequence] with {_PAGED}")
        self.check.dtype("block_table", self.block_table, "int32")
        self.check.shape("block_table", self.block_table, (self.count, -1), meaning="[B, blocks of a sequence]")

    @property
    def count(self) -> int:
        """How many sequences there are."""
        if self.packed:
            return 1 if self.query_lengths is None else self.query_lengths.numel()
        return len(self.query)

    def sequences(self) -> Iterator[Sequence]:
        """Yield the sequences of a checked call.

        Raises
        ------
        DeviceFault
            A length is negative, decreases where lengths are cumulative, or is beyond the tensor or the table.
        """
        name, length = "actual_seq_lengths_query", self.query.shape[-3]
        if self.packed:
            queries = self._ends(name, self.query_lengths, length)
        else:
            queries = self._counts(name, self.query_lengths, length, length)
        name = f"actual_seq_lengths_{self.key_name}"
        if self.block_table is not None:
            length = self.block_table.shape[1] * self.key.shape[1]
            keys = self._counts(name, self.key_lengths, length, 0)
        elif self.layout_key == "TND":
            keys = self._ends(name, self.key_lengths, self.key.shape[0])
        else:
            keys = self._counts(name, self.key_lengths, self.key.shape[1], self.key.shape[1])
        for batch, (rows, span) in enumerate(zip(queries, keys, strict=True)):
            yield Sequence(batch, rows, len(span), span.start)

    def _ends(self, argument: str, lengths: Tensor | None, total: int) -> list[range]:
        """Cut a T axis into the sequences' spans."""
        ends = [] if lengths is None else lengths.tolist()
        starts = [0, *ends[:-1]]
        for batch, (start, end) in enumerate(zip(starts, ends, strict=True)):
            self._check_length(argument, batch, end, start, total)
        return [range(start, end) for start, end in zip(starts, ends, strict=True)]

    def _counts(self, argument: str, lengths: Tensor | None, length: int, stride: int) -> list[range]:
        """Return the spans of sequences with an axis of ``length`` each, ``stride`` rows apart."""
        counts = [length] * self.count if lengths is None else lengths.tolist()
        for batch, count in enumerate(counts):
            self._check_length(argument, batch, count, 0, length)
        return [range(batch * stride, batch * stride + count) for batch, count in enumerate(counts)]

    def _check_length(self, argument: str, batch: int, given: int, low: int, high: int) -> None:
        if not low <= given <= high:
            where = f"{self.check.operator}: {argument}[{batch}] is {given}"
            raise DeviceFault(f"{where}, the tensors have room for {low} to {high}")

    def addresses(self, sequence: Sequence, tokens: Tensor) -> Tensor:
        """Return the rows of the key, without heads, at which tokens of a sequence lie; the shape of ``tokens``.

        Raises
        ------
        DeviceFault
            A block id is not in the cache. The operators do not validate ids: hardware reads foreign memory.
        """
        if self.block_table is None:
            return tokens + sequence.first_key
        size, count = self.key.shape[1], self.key.shape[0]
        blocks = self.block_table[sequence.batch].long()[tokens // size]
        outside = (blocks < 0) | (blocks >= count)
        if outside.any():
            token, block = int(tokens[outside][0]), int(blocks[outside][0])
            where = f"{self.check.operator}: block_table[{sequence.batch}, {token // size}]"
            raise DeviceFault(f"{where} is {block}, and the cache has {count} blocks")
        return blocks * size + tokens % size
