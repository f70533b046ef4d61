import torch


class RadixAttention(torch.nn.Module):
    """What attention is told of its layer."""

    def __init__(
        self, num_heads, head_dim, scaling, num_kv_heads, layer_id, v_head_dim=-1, sliding_window_size=-1,
    ):  # fmt: skip
        super().__init__()
        self.tp_q_head_num, self.tp_k_head_num, self.layer_id = num_heads, num_kv_heads, layer_id
        self.qk_head_dim, self.v_head_dim = head_dim, head_dim if v_head_dim == -1 else v_head_dim
        self.scaling, self.sliding_window_size, self.use_irope = scaling, sliding_window_size, False
