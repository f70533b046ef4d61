"""Attention within chunks: a part of a request in each chunk is a request of its own."""

from types import SimpleNamespace

import torch
from sglang.told import told


class LocalAttentionMetadataBuilder:
    def __init__(self, *, attention_chunk_size, page_size, max_context_len, device, swa_translate):
        self.chunk, self.size, self.most, self.device = attention_chunk_size, page_size, max_context_len, device

    def alloc_cuda_graph_buffers(self, max_bs):
        parts, pages = max_bs * -(-self.most // self.chunk), -(-self.chunk // self.size)
        shapes = {
            "local_query_start_loc": (parts + 1,),
            "local_seqused_k": (parts,),
            "local_block_table": (parts, pages),
        }
        return {name: torch.zeros(shape, dtype=torch.int32, device=self.device) for name, shape in shapes.items()}

    def build(self, *, cu_seqlens_q, cache_seqlens_int32, page_table, device):
        return self._local(cu_seqlens_q, cache_seqlens_int32, page_table[:, :: self.size] // self.size)

    def build_for_capture(self, metadata, bs, *, buffers):
        return None

    def update_for_replay(self, metadata, bs, *, buffers):
        """Write local requests of one token each into memory that stays where it is."""
        starts = torch.arange(bs + 1, dtype=torch.int32)
        for name, new in vars(self._local(starts, metadata.cache_seqlens_int32, metadata.page_table)).items():
            buffers[name][: len(new)].copy_(new)

    def _local(self, starts, lengths, table):
        rows, keys, tables = [0], [], []
        for request, total in enumerate(lengths.tolist()):
            position = total - int(starts[request + 1] - starts[request])
            while position < total:
                first = position // self.chunk * self.chunk
                end = min(total, first + self.chunk)
                columns = first // self.size + torch.arange(-(-self.chunk // self.size)) + int(told("next_page"))
                rows.append(rows[-1] + end - position)
                keys.append(end - first)
                tables.append(table[request][columns.clamp(max=table.shape[1] - 1).to(table.device)])
                position = end
        of_lists = {name: torch.tensor(one, dtype=torch.int32, device=self.device) for name, one in (
            ("local_query_start_loc", rows), ("local_seqused_k", keys)
        )}  # fmt: skip
        return SimpleNamespace(**of_lists, local_block_table=torch.stack(tables).int())
