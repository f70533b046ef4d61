"""Attention within chunks: a part of a request in each chunk is a request of its own, in front of any backend."""

from dataclasses import replace

import torch


def make_local_attention_virtual_batches(attn_chunk_size, common_attn_metadata, block_size):
    said, chunk = common_attn_metadata, attn_chunk_size
    rows, keys, tables = [0], [], []
    starts, table = said.query_start_loc_cpu.tolist(), said.block_table_tensor
    for request, total in enumerate(said.seq_lens_cpu.tolist()):
        position = total - (starts[request + 1] - starts[request])
        while position < total:
            first = position // chunk * chunk
            end = min(total, first + chunk)
            columns = first // block_size + torch.arange(-(-chunk // block_size), device=table.device)
            rows.append(rows[-1] + end - position)
            keys.append(end - first)
            tables.append(table[request, columns.clamp(max=table.shape[1] - 1)])
            position = end
    starts, lengths = torch.tensor(rows, dtype=torch.int32), torch.tensor(keys, dtype=torch.int32)
    local = replace(
        said, query_start_loc=starts, query_start_loc_cpu=starts, seq_lens=lengths, seq_lens_cpu=lengths,
        _seq_lens_cpu=lengths, num_reqs=len(keys), block_table_tensor=torch.stack(tables),
    )  # fmt: skip
    return local, None


def create_chunked_local_attention_backend(underlying_attn_backend, attention_chunk_size):
    class Builder(underlying_attn_backend.get_builder_cls()):
        def build(self, common_prefix_len, common_attn_metadata):
            local, _ = make_local_attention_virtual_batches(
                attention_chunk_size, common_attn_metadata, self.kv_cache_spec.block_size
            )
            return super().build(common_prefix_len, local)

    return type("ChunkedLocalAttention", (), {"get_builder_cls": staticmethod(lambda: Builder)})
