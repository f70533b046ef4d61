"""Wrong attention within chunks."""

from __future__ import annotations

import torch

from npudiff import Target, mutant
from npudiff.device.ascend import sliding_attention
from npudiff.device.ascend.chunked_attention import (
    Local,
    LocalRequests,
    extended,
    fia_chunked_decode,
    fia_chunked_extend,
    masked,
    torch_chunked,
)
from npudiff.device.ascend.fused_attention import decode_call, tnd_call
from npudiff.reference.chunked_attention import ChunkedAttentionInputs
from npudiff.reference.sliding_attention import SlidingAttentionInputs

_LOCAL = "sglang 0.5.23 layers/attention/local_attention.py"


@mutant(
    fia_chunked_extend,
    "sglang 0.5.23 model_runner_components/load_model_utils.py 153: a chunk is no window that slides",
)
def chunk_slides(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Let every row see as many keys as a chunk has."""
    batch = SlidingAttentionInputs(
        inputs.query, inputs.kv, None, inputs.query_lengths, inputs.kv_lengths, inputs.chunk, inputs.scale, None
    )
    return sliding_attention.run_tnd(batch, tnd_call(batch))["output"]


@mutant(fia_chunked_extend, f"{_LOCAL} 254: a chunk that is longer than all requests is cut to whole pages of them")
def chunk_is_cut_to_the_history(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Take the whole pages of the longest request for a chunk, where they are fewer."""

    class Cut(LocalRequests):
        def effective_chunk(self) -> int:
            longest = min(self.inputs.chunk, max(self.inputs.kv_lengths))
            return max(self.size, longest // self.size * self.size)

    return extended(Cut(inputs))


@mutant(fia_chunked_extend, f"{_LOCAL} 274: the first chunk of new tokens has tokens that are there already")
def chunks_begin_with_new_tokens(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Count chunks from the first new token of each request."""

    class FromNew(LocalRequests):
        before = 0

        def parts(self, request: int, new: int, total: int) -> list[Local]:
            self.before = total - new
            return super().parts(request, new, total)

        def begin(self, position: int) -> int:
            return self.before + (position - self.before) // self.chunk * self.chunk

    return extended(FromNew(inputs))


@mutant(fia_chunked_decode, f"{_LOCAL} 277: a last chunk that is whole has all of its keys, and not none")
def whole_chunk_has_no_keys(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Take the length modulo the chunk for the number of keys; where that is 0, one key is left."""

    class Modulo(LocalRequests):
        def keys(self, first: int, end: int) -> int:
            return max(1, (end - first) % self.chunk)

    batch = Modulo(inputs).batch()
    return sliding_attention.run_decode(batch, decode_call(batch))["output"]


@mutant(fia_chunked_extend, "sgl-project/sglang/pull/32902: tables have a column per page, and not per token")
def local_table_of_tokens(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Take the position at which a chunk begins for its column in the table."""

    class OfTokens(LocalRequests):
        def column(self, part: Local) -> int:
            return part.first

    return extended(OfTokens(inputs))


@mutant(fia_chunked_decode, f"{_LOCAL} 324: a local request begins with the page of its chunk")
def local_table_of_the_first_chunk(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Give each chunk the first pages of its request."""

    class First(LocalRequests):
        def column(self, part: Local) -> int:
            return super().column(part._replace(first=0))

    batch = First(inputs).batch()
    return sliding_attention.run_decode(batch, decode_call(batch))["output"]


@mutant(torch_chunked, "transformers/masking_utils.py 109: the chunk of a query is that of its own position")
def chunk_of_the_next_position(inputs: ChunkedAttentionInputs, target: Target) -> torch.Tensor:
    """Let the last row of a chunk belong to the next one; it sees its own key at least."""
    outputs = masked(inputs, 1)
    return torch.where(outputs.isnan(), torch.zeros_like(outputs), outputs)
