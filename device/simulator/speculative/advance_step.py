"""``npu_advance_step_flashattn``: tokens, positions, lengths and slots of the next step, in place.

Sources: its documentation (DOC), and the expected values of op-plugin's tests (TEST). DOC calls it vLLM's function of
that name; where slots of a step without drafts are, the three disagree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from npudiff.device.simulator.argument_checks import ArgumentChecks
from npudiff.device.simulator.errors import ErrorCode
from npudiff.device.simulator.profiles import active_profile

_CHECK = ArgumentChecks("npu_advance_step_flashattn", default=ErrorCode.PARAMETER)

_NO_TOKEN = -1


def advance_step(
    input_tokens: Tensor,
    sampled_token_ids: Tensor,
    input_positions: Tensor,
    seq_lens: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    num_seqs: int,
    num_queries: int,
    block_size: int,
    spec_token: Tensor | None,
    accepted_num: Tensor | None,
) -> None:
    """Write what the next step of each sequence begins with.

    Parameters
    ----------
    input_tokens, input_positions, seq_lens, slot_mapping : Tensor
        int64 [num_seqs], or [num_seqs * (1 + drafts)]; written.
    sampled_token_ids : Tensor
        int64 [num_queries, 1], or [num_seqs, 1 + drafts] with -1 behind the last token.
    block_tables : Tensor
        int64 [num_seqs, blocks].
    num_seqs, num_queries, block_size : int
        Sequences, those of them that go on, and tokens of a block. Without drafts there are fewer queries than
        sequences, and as many with them.
    spec_token, accepted_num : Tensor, optional
        int64 [num_seqs, drafts] and [num_seqs]: the drafts of the next step, and how many of this one were accepted.

    Raises
    ------
    OperatorRejected
        Dtype, shape or number is not one of the above.
    DeviceFault
        A position is in no block of the table.
    """
    drafts = 0 if spec_token is None else spec_token.shape[-1]
    written = (input_tokens, input_positions, seq_lens, slot_mapping)
    _check_sizes(num_seqs, num_queries, block_size, drafted=spec_token is not None)
    _check_shapes(written, sampled_token_ids, block_tables, (num_seqs, num_queries, drafts))
    if spec_token is None:
        _advance(written, sampled_token_ids, block_tables, (num_seqs, num_queries, block_size))
        return
    if accepted_num is None:
        raise _CHECK.rejected("accepted_num", None, "int64 [num_seqs], with spec_token")
    for name, tensor, shape in (
        ("spec_token", spec_token, (num_seqs, drafts)),
        ("accepted_num", accepted_num, (num_seqs,)),
    ):
        _CHECK.dtype(name, tensor, "int64")
        _CHECK.shape(name, tensor, shape, meaning="one row per sequence")
    _advance_drafts(written, sampled_token_ids, block_tables, block_size, spec_token, accepted_num)


def advance_step_meta() -> None:
    """Return nothing."""


def _advance(written: tuple[Tensor, ...], sampled: Tensor, tables: Tensor, sizes: tuple[int, int, int]) -> None:
    """Go on by one token per query; sequences behind them are padding."""
    tokens, positions, lengths, slots = written
    count, queries, block_size = sizes
    profile = active_profile()
    padding = slice(queries, count, profile.advance_step_padding)
    tokens[padding], positions[padding], slots[padding] = 0, 0, _NO_TOKEN
    tokens[:queries] = sampled[:, 0]
    position = lengths[:queries].clone()
    lengths[:queries] += 1
    positions[:queries] = position
    block, number = position // block_size, torch.arange(queries)
    if profile.advance_step_slots == "of_sequence":
        _CHECK.indices("seq_lens / block_size", block, tables.shape[1], "blocks of a sequence")
        blocks = tables[number, block]
    else:
        _CHECK.indices("seq_lens / block_size", block, tables.numel(), "blocks of all sequences")
        blocks = tables.flatten()[block] + tables.stride(0) * number
    slots[:queries] = blocks * block_size + position % block_size


def _advance_drafts(
    written: tuple[Tensor, ...], sampled: Tensor, tables: Tensor, block_size: int, drafts: Tensor, accepted: Tensor
) -> None:
    """Go on behind the accepted drafts, with the last token that there is and the next drafts."""
    tokens, positions, lengths, slots = written
    each = 1 + drafts.shape[1]
    positions += 1 + accepted.repeat_interleave(each)
    lengths.copy_(positions + 1)
    ended = torch.cat((sampled, torch.full((len(sampled), 1), _NO_TOKEN)), 1)
    last = ended.argmin(1, keepdim=True) - 1
    rows = tokens.view(-1, each)
    rows[:, 0] = sampled.gather(1, last % sampled.shape[1])[:, 0]
    rows[:, 1:] = drafts
    block = positions // block_size
    _CHECK.indices("input_positions / block_size", block, tables.shape[1], "blocks of a sequence")
    slots.copy_(tables.gather(1, block.view(-1, each)).view(-1) * block_size + positions % block_size)


def _check_sizes(count: int, queries: int, block_size: int, *, drafted: bool) -> None:
    for name, size in (("num_seqs", count), ("num_queries", queries), ("block_size", block_size)):
        if size <= 0:
            raise _CHECK.rejected(name, size, "greater than 0")
    if drafted and queries != count:
        raise _CHECK.rejected("num_queries", queries, f"the {count} sequences, with spec_token")
    if not drafted and queries >= count:
        raise _CHECK.rejected("num_queries", queries, f"fewer than the {count} sequences")


def _check_shapes(written: tuple[Tensor, ...], sampled: Tensor, tables: Tensor, sizes: tuple[int, int, int]) -> None:
    count, queries, drafts = sizes
    names = ("input_tokens", "input_positions", "seq_lens", "slot_mapping")
    for name, tensor in zip(names, written, strict=True):
        _CHECK.dtype(name, tensor, "int64")
        _CHECK.shape(name, tensor, (count * (1 + drafts),), meaning="a number for each token")
    _CHECK.dtype("sampled_token_ids", sampled, "int64")
    _CHECK.shape("sampled_token_ids", sampled, (queries, 1 + drafts), meaning="[num_queries, 1 + drafts]")
    _CHECK.dtype("block_tables", tables, "int64")
    _CHECK.shape("block_tables", tables, (count, -1), meaning="[num_seqs, blocks]")
