"""What a request may ask for."""

TOP_K_ALL = 1 << 30
