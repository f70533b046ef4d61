"""Measurements of npudiff itself, as ratios within one run: ``python -m benchmarks``."""
