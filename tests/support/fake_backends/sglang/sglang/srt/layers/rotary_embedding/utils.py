from sglang.srt.layers.rotary_embedding.base import rotated


def apply_rotary_pos_emb_npu(q, k, cos, sin):
    """Rotate heads as a whole, by cosines and sines of each element, of which the second half repeats the first."""
    half = cos.shape[-1] // 2
    table = [cos[..., :half], sin[..., :half]]
    return tuple(rotated(one, _joined(table), is_neox_style=True) for one in (q, k))


def _joined(table):
    import torch

    return torch.cat(table, dim=-1).view(-1, 2 * table[0].shape[-1])
