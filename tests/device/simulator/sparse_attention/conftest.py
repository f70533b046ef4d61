"""A laboratory for attention over chosen tokens: sequences, and how they lie in the layouts.

Everything is per sequence, [rows, ...], until it is packed for a call. What nobody may read is NaN, or 77 in integers.
"""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from npudiff.device import simulator
from npudiff.device.simulator import PROFILES, use_profile

LAYOUTS = [("BSND", "BSND"), ("TND", "TND"), ("BSND", "PA_BSND"), ("TND", "PA_BSND")]
BLOCK_SIZE = 16


@pytest.fixture(scope="session", autouse=True)
def installed():
    simulator.install()


def poison(shape, dtype):
    return torch.full(shape, math.nan if dtype.is_floating_point else 77, dtype=dtype)


def pack(sequences, layout, table=None):
    """Put [rows, ...] sequences into one tensor of a layout."""
    if layout == "TND":
        return torch.cat(sequences)
    rest, dtype = sequences[0].shape[1:], sequences[0].dtype
    if layout == "BSND":
        packed = poison((len(sequences), max(1, *map(len, sequences)), *rest), dtype)
        for row, sequence in zip(packed, sequences, strict=True):
            row[: len(sequence)] = sequence
        return packed
    cache = poison((int(table.max()) + 2, BLOCK_SIZE, *rest), dtype)
    for blocks, sequence in zip(table.tolist(), sequences, strict=True):
        for block, tokens in zip(blocks, sequence.split(BLOCK_SIZE), strict=False):
            cache[block, : len(tokens)] = tokens
    return cache


def unpack(output, layout, lengths):
    """Cut a call's output into the rows of each sequence."""
    if layout == "TND":
        return output[: sum(lengths)].split(lengths)
    return [row[:length] for row, length in zip(output, lengths, strict=True)]


def page_table(lengths):
    """Give every sequence its pages, and one more that no cache has."""
    width = max(1, *(math.ceil(length / BLOCK_SIZE) for length in lengths))
    order = torch.randperm(width * len(lengths), generator=torch.Generator().manual_seed(5)).view(-1, width)
    table = torch.full((len(lengths), width + 1), 9999, dtype=torch.int32)
    for row, blocks, length in zip(table, order, lengths, strict=True):
        used = math.ceil(length / BLOCK_SIZE)
        row[:used] = blocks[:used] + 1
    return order + 1, table


def where(query_lengths, key_lengths, layouts, name):
    """Return layouts, lengths and table as arguments; keys are named ``name``."""
    query, key = layouts
    cumulative = [torch.tensor(lengths).cumsum(0).int() for lengths in (query_lengths, key_lengths)]
    plain = [torch.tensor(lengths, dtype=torch.int32) for lengths in (query_lengths, key_lengths)]
    return {
        "layout_query": query,
        f"layout_{name}": key,
        "actual_seq_lengths_query": (cumulative if query == "TND" else plain)[0],
        f"actual_seq_lengths_{name}": (cumulative if key == "TND" else plain)[1],
        "block_table": page_table(key_lengths)[1] if key == "PA_BSND" else None,
    }


def changed(**choices):
    return use_profile(dataclasses.replace(PROFILES["8.5"], name="changed", **choices))


def visible(mode, queries, keys):
    """Return how many keys each of the queries sees."""
    return [max(0, keys - queries + row + 1) if mode == 3 else keys for row in range(queries)]


@pytest.fixture(scope="session")
def lab():
    return SimpleNamespace(
        LAYOUTS=LAYOUTS,
        BLOCK_SIZE=BLOCK_SIZE,
        pack=pack,
        unpack=unpack,
        page_table=page_table,
        where=where,
        changed=changed,
        visible=visible,
    )
