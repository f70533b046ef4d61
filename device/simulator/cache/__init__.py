"""Cache operators: what is written into pages, how it lies there, and the FRACTAL_NZ format."""
