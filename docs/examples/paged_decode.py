"""A small decoder on ``device="npu"``: training steps, then paged decode. It runs on a card and on a virtual NPU alike.

    npudiff virtual -- python docs/examples/paged_decode.py

Nothing in this file knows of npudiff. On a machine with CANN and a card, run it without ``npudiff virtual --``.
"""

from __future__ import annotations

import torch
import torch_npu
from torch import Tensor, nn

HIDDEN, HEADS, HEAD_DIM, PAGE_SIZE, PAGES, VOCABULARY = 128, 2, 64, 128, 6, 50
DEVICE = torch.device("npu")


class Mlp(nn.Module):
    """A gated layer, in plain PyTorch: autograd works through it as on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """Return states [..., hidden]."""
        gate, up = self.up(states).chunk(2, dim=-1)
        result: Tensor = self.down(nn.functional.silu(gate) * up)
        return result


class PagedAttention(nn.Module):
    """Attention over pages of keys and values, through torch_npu's operators, for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(HIDDEN, 3 * HEADS * HEAD_DIM, bias=False)
        self.output = nn.Linear(HEADS * HEAD_DIM, HIDDEN, bias=False)
        self.norm = nn.Parameter(torch.ones(HIDDEN))
        pages = torch.zeros(PAGES, PAGE_SIZE, HEADS * HEAD_DIM)
        self.register_buffer("keys", pages.clone())
        self.register_buffer("values", pages.clone())

    def forward(self, states: Tensor, table: Tensor, slots: Tensor, lengths: list[int]) -> Tensor:
        """Write the new token of each request into its slot, and let it see all tokens of its pages."""
        normed, _ = torch_npu.npu_rms_norm(states, self.norm, epsilon=1e-6)
        query, key, value = self.projection(normed).chunk(3, dim=-1)
        for cache, new in ((self.keys, key), (self.values, value)):
            torch_npu.npu_scatter_nd_update_(cache.view(-1, HEADS * HEAD_DIM), slots.view(-1, 1), new)
        seen, _ = torch_npu.npu_fused_infer_attention_score(
            query.unsqueeze(1),
            self.keys,
            self.values,
            num_heads=HEADS,
            input_layout="BSH",
            scale=HEAD_DIM**-0.5,
            actual_seq_lengths_kv=lengths,
            block_table=table,
            block_size=PAGE_SIZE,
        )
        result: Tensor = states + self.output(seen.squeeze(1))
        return result


def train(layer: Mlp, steps: int) -> list[float]:
    """Fit the layer to twice its input; return the losses."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)
    states = torch.randn(32, HIDDEN, device=DEVICE)
    losses = []
    for _ in range(steps):
        loss = nn.functional.mse_loss(layer(states), 2 * states)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def decode(attention: PagedAttention, layer: Mlp, tokens: int) -> Tensor:
    """Decode greedily for two requests of different lengths; return token numbers [2, tokens]."""
    embedding = torch.randn(VOCABULARY, HIDDEN, device=DEVICE).to(torch.bfloat16)
    table = torch.tensor([[4, 1], [2, 5]], dtype=torch.int32, device=DEVICE)  # pages of a request, in no order
    lengths = [PAGE_SIZE - 2, 3]  # the first request is about to enter its second page
    number = torch.tensor([7, 11], device=DEVICE)
    chosen = []
    for _ in range(tokens):
        position = torch.tensor(lengths, device=DEVICE)
        page = table[torch.arange(2, device=DEVICE), position // PAGE_SIZE]
        slots = page * PAGE_SIZE + position % PAGE_SIZE
        lengths = [length + 1 for length in lengths]
        states = layer(attention(embedding[number], table, slots, lengths))
        number = (states.float() @ embedding.float().t()).argmax(dim=-1)
        chosen.append(number)
    return torch.stack(chosen, dim=1)


def main() -> None:
    """Train, decode on a stream of its own, and say how long the device took."""
    torch.npu.manual_seed(1)
    print(f"{torch.npu.get_device_name()}, torch_npu {torch_npu.__version__}")
    layer = Mlp().to("npu")
    losses = train(layer, 20)
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    attention = PagedAttention().to("npu", torch.bfloat16)
    stream, begin, end = torch.npu.Stream(), *(torch.npu.Event(enable_timing=True) for _ in range(2))
    with torch.npu.stream(stream):
        begin.record()
        numbers = decode(attention, layer.to(torch.bfloat16), 6)
        end.record()
    stream.synchronize()
    print(f"tokens {numbers.tolist()}, {begin.elapsed_time(end):.1f} ms")
    print(f"{torch.npu.max_memory_allocated() / 1024:.0f} KiB at most")


if __name__ == "__main__":
    main()
