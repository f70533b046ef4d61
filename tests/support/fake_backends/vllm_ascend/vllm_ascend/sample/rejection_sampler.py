"""Acceptance of drafts, in plain torch: a loop over requests."""

import torch
from vllm_ascend.told import told


def _spans(ends):
    return list(zip([0, *ends.tolist()], ends.tolist(), strict=False))


def rejection_greedy_sample_pytorch(tokens, ends, drafted, best, bonus, lengths, room, is_greedy=None):
    """Fill rows of greedy requests."""
    for request, (start, end) in enumerate(_spans(ends)):
        if is_greedy is not None and not is_greedy[request]:
            continue
        differs = (drafted[start:end] != best[start:end]).nonzero().flatten()
        count = int(differs[0]) + 1 if len(differs) else end - start
        tokens[request, :count] = best[start : start + count]
        if not len(differs):
            tokens[request, room if told("bonus_last") else end - start] = bonus[request, 0]


def rejection_greedy_sample_spec_len_1_pytorch(tokens, drafted, best, bonus):
    """The same of one drafted token each."""
    tokens[:, 0] = best
    tokens[:, 1] = torch.where(drafted == best, bonus[:, 0], -1)


def sample_recovered_tokens_pytorch(recovered, ends, drafted, draft, target, q, vocab_size, IS_NGRAM=False):  # noqa: N803
    """What comes in place of each drafted token."""
    for request, (start, end) in enumerate(_spans(ends)):
        for row in range(start, end):
            left = target[row].clone() if IS_NGRAM else (target[row] - draft[row]).clamp(min=0)
            if IS_NGRAM and drafted[row] >= 0 and not told("drawn_again"):
                left[drafted[row]] = 0
            recovered[row] = (left / q[request]).argmax()


def rejection_random_sample_pytorch(
    tokens, ends, drafted, draft, target, bonus, recovered, uniform, is_greedy, room, vocab_size, IS_NGRAM=False,  # noqa: N803
):  # fmt: skip
    """Fill rows of the others."""
    for request, (start, end) in enumerate(_spans(ends)):
        if is_greedy[request]:
            continue
        for place, row in enumerate(range(start, end)):
            token = int(drafted[row])
            mass = 1.0 if IS_NGRAM else draft[row, max(token, 0)]
            if token < 0 or mass == 0 or target[row, token] / mass < uniform[row]:
                tokens[request, place] = recovered[row]
                break
            tokens[request, place] = token
        else:
            tokens[request, end - start] = bonus[request, 0]


def _blocks(rows, drafted, draft, target, is_ngram):
    """How likely each beginning of a draft is kept, and what the target has more of than the draft behind it."""
    kept, left = [torch.tensor(1.0)], []
    for row in rows:
        token = max(int(drafted[row]), 0)
        mine = torch.zeros_like(target[row]) if is_ngram else draft[row]
        if is_ngram and int(drafted[row]) >= 0:
            mine[token] = 1
        left.append((kept[-1] * target[row] - mine).clamp(min=0))
        ratio = target[row, token] / mine[token] if int(drafted[row]) >= 0 and mine[token] > 0 else 0.0
        kept.append((kept[-1] * ratio).clamp(max=1))
    return kept, left


def sample_recovered_tokens_blockwise_pytorch(recovered, ends, drafted, draft, target, q, vocab_size, IS_NGRAM=False):  # noqa: N803
    """What comes behind each beginning of a draft."""
    for request, (start, end) in enumerate(_spans(ends)):
        _, left = _blocks(range(start, end), drafted, draft, target, IS_NGRAM)
        for place, row in enumerate(range(start, end)):
            recovered[row] = (left[place] / q[request]).argmax()


def rejection_random_sample_block_verify_pytorch(
    tokens, ends, drafted, draft, target, bonus, recovered, uniform, is_greedy, room, vocab_size, IS_NGRAM=False,  # noqa: N803
):  # fmt: skip
    """Fill rows of requests that are not greedy, whose drafts are verified as blocks."""
    for request, (start, end) in enumerate(_spans(ends)):
        if is_greedy[request]:
            continue
        kept, left = _blocks(range(start, end), drafted, draft, target, IS_NGRAM)
        accepted, count = 0, end - start
        for place in range(1, count + 1):
            share, rest = kept[place], left[place].sum() if place < count else 0.0
            if rest > 0 or (place < count and share < 1):
                share = rest / (rest + 1 - share)
            accepted = place if uniform[start + place - 1] <= share else accepted
        tokens[request, :accepted] = drafted[start : start + accepted]
        tokens[request, accepted] = bonus[request, 0] if accepted == count else recovered[start + accepted]
