"""Rotary position embeddings.

``rotation`` has the arithmetic, and one module per
operator says what it refuses and where it rounds.
"""
