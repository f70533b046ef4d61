"""RMS norms, alone and fused with what comes before or after them."""
