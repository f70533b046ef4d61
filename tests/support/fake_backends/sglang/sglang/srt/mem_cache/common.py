from sglang.told import told


def free_swa_out_of_window_slots(
    req, pre_len, *, sliding_window_size, page_size, req_to_token_pool, token_to_kv_pool_allocator,
    supports_prefix_sharing=True,
):  # fmt: skip
    """Give up whole pages of the sliding pool in which nothing is visible to the next token or those after it."""
    keep = sliding_window_size
    if supports_prefix_sharing:
        keep = -(-max(keep, page_size) // page_size) * page_size
    end = max(0, pre_len - keep + int(told("page_too_many")) * page_size) // page_size * page_size
    start = req.kv.swa_evicted_seqlen
    if end > start:
        token_to_kv_pool_allocator.free_swa(req_to_token_pool.req_to_token[req.kv.req_pool_idx, start:end:page_size])
        req.kv.swa_evicted_seqlen = end
