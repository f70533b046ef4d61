"""Attention over chosen tokens: the indexers that choose them, and attention over the chosen ones."""
