def per_step_draft_out_cache_loc(out_cache_loc, batch_size, topk, num_steps):
    """Slots of each step, ``[steps, batch * topk]``, of slots that lie one request after the other."""
    return out_cache_loc.view(batch_size, topk, num_steps).permute(2, 0, 1).reshape(num_steps, -1)
