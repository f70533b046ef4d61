"""Attention of one request, in plain torch of float32."""

import torch
from vllm_ascend.told import told


def attend(query, keys, values, length, scale, window=None, sinks=None, *, causal=True):
    """Return what the last rows of a request see, and the logarithm of the sum of exponentials.

    Parameters
    ----------
    query : torch.Tensor
        ``[rows, heads, dim]``.
    keys, values : torch.Tensor
        ``[places, kv_heads, dim]``, of which the first ``length`` are there, an integer or a tensor of one.
    window : int or None
        Number of visible keys, the row's own included.
    sinks : torch.Tensor or None
        ``[heads]``.
    causal : bool
        Whether a row sees no keys behind its own; otherwise it sees all.
    """
    rows, heads, dim = query.shape
    kv_heads, places = keys.shape[1], torch.arange(keys.shape[0], device=query.device)
    own = length - rows + torch.arange(rows, device=query.device).unsqueeze(1)
    hidden = places > own if causal else (places >= length).expand(rows, -1)
    if window is not None:
        hidden = hidden | (places <= own - window + int(told("window_off_by_one")))
    grouped = query.float().view(rows, kv_heads, heads // kv_heads, dim)
    scores = torch.einsum("rkgd,lkd->kgrl", grouped, keys.float()) * scale
    scores = scores.masked_fill(hidden, -torch.inf)
    if sinks is not None and not told("no_sinks"):
        column = sinks.float().view(kv_heads, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    total = scores.logsumexp(dim=-1)
    weights = (scores - total.unsqueeze(-1)).exp().nan_to_num(0.0)[..., : len(places)]
    answer = torch.einsum("kgrl,lkd->rkgd", weights, values.float())
    return answer.reshape(rows, heads, values.shape[-1]), total.permute(2, 0, 1).reshape(rows, heads)
