"""What stands between logits and a sampled token: ``top_k_top_p`` filters, ``choices`` lists what no source settles."""
