"""Wrong kernels of encoder_attention; TWIN=1 in the environment runs them without the mistakes."""

import os

import torch

import npudiff

TWIN = bool(os.environ.get("TWIN"))
TILE = 64


def nothing(inputs):
    """Outputs of rows that see no key."""
    output = torch.zeros_like(inputs.query, memory_format=torch.contiguous_format)
    return {"output": output, "lse": torch.full(output.shape[:2], -torch.inf, device=output.device)}


def spans(lengths):
    """First and last of each sequence."""
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return list(zip(ends[:-1], ends[1:]))


def heads_of(inputs, rows, keys):
    """Queries, keys and values of all heads, float32 ``[heads, tokens, dim]``; queries are scaled."""
    group = inputs.query.shape[1] // inputs.key.shape[1]
    query = inputs.query[slice(*rows)].float().transpose(0, 1) * inputs.scale
    key, value = (
        one[slice(*keys)].float().transpose(0, 1).repeat_interleave(group, dim=0) for one in (inputs.key, inputs.value)
    )
    return query, key, value


def put(outputs, rows, output, lse):
    """Keep outputs ``[heads, rows, dim]`` and log-sum-exps ``[heads, rows]``."""
    outputs["output"][slice(*rows)] = output.transpose(0, 1).to(outputs["output"].dtype)
    outputs["lse"][slice(*rows)] = lse.t()


@npudiff.implementation("encoder_attention", name="h_encoder_attention_01_tail_ends_with_all_keys", on_device=True)
def tail_ends_with_all_keys(inputs, target):
    """The last tile of 64 keys of a sequence is masked behind the last key of all; shows where another one follows."""
    outputs, every = nothing(inputs), sum(inputs.kv_lengths)
    for rows, (first, last) in zip(spans(inputs.query_lengths), spans(inputs.kv_lengths)):
        if rows[0] < rows[1] and first < last:
            end = last if TWIN else min(every, first + -(-(last - first) // TILE) * TILE)
            query, key, value = heads_of(inputs, rows, (first, end))
            scores = query @ key.transpose(1, 2)
            put(outputs, rows, torch.softmax(scores, dim=2) @ value, torch.logsumexp(scores, dim=2))
    return outputs


@npudiff.implementation("encoder_attention", name="h_encoder_attention_02_zeros_of_a_short_sequence", on_device=True)
def zeros_of_a_short_sequence(inputs, target):
    """Fewer keys than 16 are filled with zeros, which are seen; shows in such sequences."""
    outputs = nothing(inputs)
    for rows, keys in zip(spans(inputs.query_lengths), spans(inputs.kv_lengths)):
        if rows[0] < rows[1] and keys[0] < keys[1]:
            query, key, value = heads_of(inputs, rows, keys)
            more = max(0, 16 - key.shape[1])
            key, value = (torch.nn.functional.pad(one, (0, 0, 0, more)) for one in (key, value))
            scores = query @ key.transpose(1, 2)
            if TWIN:
                scores[:, :, scores.shape[2] - more :] = -torch.inf
            put(outputs, rows, torch.softmax(scores, dim=2) @ value, torch.logsumexp(scores, dim=2))
    return outputs


@npudiff.implementation("encoder_attention", name="h_encoder_attention_03_empty_ends_dropped_by_side", on_device=True)
def empty_ends_dropped_by_side(inputs, target):
    """Ends that repeat are dropped from rows and from keys, each by itself; shows where a sequence has one and not the
    other."""
    outputs = nothing(inputs)
    own, seen = inputs.query_lengths, inputs.kv_lengths
    if not TWIN:
        own, seen = ([length for length in lengths if length] for lengths in (own, seen))
    for rows, keys in zip(spans(own), spans(seen)):
        if rows[0] < rows[1] and keys[0] < keys[1]:
            query, key, value = heads_of(inputs, rows, keys)
            scores = query @ key.transpose(1, 2)
            put(outputs, rows, torch.softmax(scores, dim=2) @ value, torch.logsumexp(scores, dim=2))
    return outputs


@npudiff.implementation(
    "encoder_attention", name="h_encoder_attention_04_second_columns_keep_their_scale", on_device=True
)
def second_columns_keep_their_scale(inputs, target):
    """Outputs are added up in stretches of 128 columns, of which the first alone is rescaled when the maximum rises;
    shows in wider heads behind the first 64 keys."""
    outputs = nothing(inputs)
    for rows, (first, last) in zip(spans(inputs.query_lengths), spans(inputs.kv_lengths)):
        if rows[0] == rows[1] or first == last:
            continue
        query, key, value = heads_of(inputs, rows, (first, last))
        most = torch.full(query.shape[:2], -torch.inf, device=query.device)
        total, output = torch.zeros_like(most), torch.zeros_like(query)
        for start in range(0, last - first, TILE):
            scores = query @ key[:, start : start + TILE].transpose(1, 2)
            new = torch.maximum(most, scores.amax(dim=2))
            weights, factor = torch.exp(scores - new.unsqueeze(2)), torch.exp(most - new).unsqueeze(2)
            most, total = new, total * factor.squeeze(2) + weights.sum(dim=2)
            brought = weights @ value[:, start : start + TILE]
            output[..., :128] = output[..., :128] * factor + brought[..., :128]
            output[..., 128:] = output[..., 128:] * (factor if TWIN else 1.0) + brought[..., 128:]
        put(outputs, rows, output / total.unsqueeze(2), most + total.log())
    return outputs
