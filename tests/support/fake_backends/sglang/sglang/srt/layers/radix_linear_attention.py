"""A layer of linear attention."""


class RadixLinearAttention:
    def __init__(
        self, layer_id, num_q_heads, num_k_heads, num_v_heads, head_q_dim, head_k_dim, head_v_dim, conv_weights, bias
    ):
        self.layer_id, self.num_q_heads, self.num_k_heads = layer_id, num_q_heads, num_k_heads
        self.num_v_heads, self.head_k_dim, self.head_v_dim = num_v_heads, head_k_dim, head_v_dim
        self.widths = [num_q_heads * head_q_dim, num_k_heads * head_k_dim, num_v_heads * head_v_dim]
        self.conv_weights, self.bias, self.A_log, self.dt_bias = conv_weights, bias, None, None
