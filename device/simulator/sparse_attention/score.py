"""``npu_sparse_attention_score`` of vllm-ascend: attention over chosen blocks of a paged cache.

A query attends to the blocks of keys that its row of ``select_idx`` names: negative entries are passed over, and the
block of its own position ends there. The kernels for A2 and A3 (``arch22`` of ``attention/sparse_attention_score``)
sum block by block: float32 scores, probabilities rounded half to even before they meet the values, one division and one
rounding at the end. With few queries the host cuts the blocks of one over several cores, which changes the order of
sums and no rounding; that cut is not simulated.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from npudiff.device.simulator.errors import DeviceFault, UndefinedBehaviour
from npudiff.device.simulator.norms.unwritten import unwritten
from npudiff.device.simulator.profiles import CannProfile, active_profile
from npudiff.device.simulator.sparse_attention.score_checks import TILE, ScoreRequest, check, check_host

_MAX_TASKS = 64
_ZERO = 1e-9


def sparse_attention_score_meta(request: ScoreRequest) -> Tensor:
    """Allocate the output of ``npu_sparse_attention_score``."""
    check_host(request)
    return request.query.new_empty(request.query.shape, dtype=request.output_dtype)


def sparse_attention_score(request: ScoreRequest) -> Tensor:
    """Attend to chosen blocks of keys.

    Parameters
    ----------
    request : ScoreRequest
        query [T, N, 128], float16 or bfloat16; key and value [blocks, 128, KVN, 128]; select_idx int32 [KVN, T, K],
        block numbers of a sequence, of which the first select_num_idx [KVN, T] count; block_table int32 [B, blocks of
        a sequence]; actual_seq_lengths and actual_seq_lengths_kv int32 [B], how many queries and keys a sequence has. A
        scale_value of 0 is 1 / sqrt(128).

    Returns
    -------
    Tensor
        [T, N, 128] in the dtype of query. Nothing is written for a query and key head without a block.

    Raises
    ------
    OperatorRejected
        An argument is not one of the above.
    NotSimulated
        8-bit floats, which Ascend 950 has.
    DeviceFault
        A block number points out of the table, the table out of the cache, or lengths or indices are too few.
    UndefinedBehaviour
        Sizes that the kernels do not have, more keys than blocks can show, or a query behind the last sequence.
    """
    profile = active_profile()
    check(request)
    heads, dim = request.query.shape[1:]
    key_heads = request.key.shape[2]
    out = unwritten((len(request.query) * key_heads, heads // key_heads, dim), request.query.dtype)
    chosen = _choose(request, profile)
    for some in torch.split(chosen.counts.sum(1).nonzero().squeeze(1), _MAX_TASKS):
        queries = request.query.reshape(out.shape)[some].float()
        out[some] = _attend(queries, chosen.of(some), request).to(out.dtype)
    return out.view(request.query.shape)


@dataclass(frozen=True)
class _Chosen:
    """Which keys tasks read: one task per query and key head, one column per entry of ``select_idx``."""

    blocks: Tensor
    """int64 [tasks, K], of the cache."""
    counts: Tensor
    """int64 [tasks, K]: how many keys of the block are read; 0 where an entry is passed over."""
    heads: Tensor
    """int64 [tasks]: the key head."""

    def of(self, tasks: Tensor) -> _Chosen:
        """Return those of some tasks."""
        return _Chosen(self.blocks[tasks], self.counts[tasks], self.heads[tasks])


def _choose(request: ScoreRequest, profile: CannProfile) -> _Chosen:
    """Read the entries that count, and find their blocks in the cache."""
    key_heads, width, slots = request.select_idx.shape
    tokens = torch.arange(len(request.query)).repeat_interleave(key_heads)
    heads = torch.arange(key_heads).repeat(len(request.query))
    # Indices are addressed with the tensor's own width, whatever rows it has.
    row = heads * width + tokens
    used = torch.full_like(row, slots) if request.select_num_idx is None else _take(request, "select_num_idx", row)
    used = torch.where(used < 0, slots, used)  # the kernel takes it for unsigned
    needed = used > 0
    request.check.indices("select_idx", row[needed], key_heads * width, "rows of indices")
    entries = torch.full((len(row), slots), -1)
    entries[needed] = request.select_idx.reshape(key_heads * width, slots)[row[needed]].long()
    counted = (torch.arange(slots) < used.unsqueeze(1)) & (entries >= 0)
    sequences, positions = _positions(request, tokens, counted.any(1))
    own, places = positions.unsqueeze(1) // TILE, entries.clamp(min=0)
    if profile.sparse_score_later_block == "passed_over":
        counted &= entries <= own
    counts = torch.where(entries == own, positions.unsqueeze(1) % TILE + 1, TILE).masked_fill(~counted, 0)
    table = request.block_table.long()
    places = places.masked_fill(~counted, 0)
    request.check.indices("select_idx", places, table.shape[1], "blocks in a row of block_table")
    blocks = table[sequences.unsqueeze(1), places].masked_fill(~counted, 0)
    request.check.indices("block_table", blocks, len(request.key), "blocks in the cache")
    return _Chosen(blocks, counts, heads)


def _take(request: ScoreRequest, argument: str, rows: Tensor) -> Tensor:
    numbers: Tensor = getattr(request, argument).reshape(-1).long()
    request.check.indices(argument, rows, len(numbers), "numbers there")
    return numbers[rows]


def _positions(request: ScoreRequest, tokens: Tensor, needed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sequence of each query token, and its position among the sequence's keys; 0 where not needed."""
    batch = len(request.block_table)
    lengths = [
        _take(request, argument, torch.arange(batch)) for argument in ("actual_seq_lengths", "actual_seq_lengths_kv")
    ]
    if (lengths[0] < 0).any():
        raise DeviceFault(f"{request.check.operator}: actual_seq_lengths has a negative number, {lengths[0].tolist()}")
    ends = lengths[0].cumsum(0)
    sequences = torch.searchsorted(ends, tokens, right=True)
    outside = needed & (sequences >= batch)
    if outside.any():
        token = int(tokens[outside][0])
        told = f"query {token} has blocks, and actual_seq_lengths ends at {int(ends[-1]) if batch else 0}"
        raise UndefinedBehaviour(f"{request.check.operator}: {told}; the kernel takes it for one of the first sequence")
    sequences = torch.where(needed, sequences, 0)
    positions = lengths[1][sequences] - ends[sequences] + tokens
    before = needed & (positions < 0)
    if before.any():
        one = int(sequences[before][0])
        told = f"sequence {one} has {int(lengths[0][one])} queries and {int(lengths[1][one])} keys"
        raise UndefinedBehaviour(f"{request.check.operator}: {told}; positions before the first are not defined")
    return sequences, torch.where(needed, positions, 0)


def _attend(queries: Tensor, chosen: _Chosen, request: ScoreRequest) -> Tensor:
    """Return the attention of tasks, float32 [tasks, group, 128], slot by slot."""
    scale = request.scale_value if abs(request.scale_value) >= _ZERO else TILE**-0.5
    maximum = torch.full((*queries.shape[:2], 1), -torch.inf)
    total, weighted = torch.zeros_like(maximum), torch.zeros_like(queries)
    for blocks, counts in zip(chosen.blocks.T, chosen.counts.T, strict=True):
        active = counts > 0
        if not active.any():
            continue
        keys, values = (
            cache[blocks[active], :, chosen.heads[active]].float() for cache in (request.key, request.value)
        )
        hidden = torch.arange(TILE) >= counts[active].unsqueeze(1)
        keys[hidden], values[hidden] = 0.0, 0.0
        scores = torch.bmm(queries[active], keys.transpose(1, 2)) * scale
        scores.masked_fill_(hidden.unsqueeze(1), -torch.inf)
        before = maximum[active]
        after = torch.maximum(before, scores.amax(-1, keepdim=True))
        probabilities, factor = torch.exp(scores - after), torch.exp(before - after)
        maximum[active] = after
        total[active] = total[active] * factor + probabilities.sum(-1, keepdim=True)
        rounded = probabilities.to(request.query.dtype).float()
        weighted[active] = weighted[active] * factor + torch.bmm(rounded, values)
    return weighted / total
