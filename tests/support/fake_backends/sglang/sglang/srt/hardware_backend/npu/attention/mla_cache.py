def gather_mla_cache_pages(cache, pages, *, is_nz):
    """Return some pages of a cache, ``[pages, page_size, 1, dim]``, with rows one after the other."""
    found = cache[pages.long()]
    if not is_nz:
        return found
    count, page_size, heads, dim = found.shape
    return found.reshape(count, dim // 16, page_size, 16).transpose(1, 2).reshape(count, page_size, heads, dim)
