"""What stands between logits and a sampled token.

``top_k_top_p`` and ``token_bitmask`` filter, ``choices`` lists what no source settles.
"""
