"""Graphs of a decode; a device's own runner captures and replays."""

from dataclasses import replace

import torch


class DecodeCudaGraphRunner:
    def __init__(self, model_runner):
        self.model_runner = model_runner

    def _cache_loc_dtype(self):
        return torch.int64

    def _make_graph_key(self, batch_size):
        return batch_size


def build_replay_fb_view(
    forward_batch, buffers, bs, raw_bs, num_tokens, seq_len_fill_value, capture_forward_mode, is_encoder_decoder
):  # fmt: skip
    """Return the batch as a graph has it: its own buffers, and requests of padding."""
    return replace(
        forward_batch, forward_mode=capture_forward_mode, batch_size=bs, input_ids=buffers.input_ids[:num_tokens],
        req_pool_indices=buffers.req_pool_indices[:bs], seq_lens=buffers.seq_lens[:bs],
        seq_lens_cpu=buffers.seq_lens_cpu[:bs], out_cache_loc=buffers.out_cache_loc[:num_tokens],
    )  # fmt: skip
