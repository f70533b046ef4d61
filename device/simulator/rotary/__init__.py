"""Rotary position embeddings.

``rotation`` has the arithmetic, ``requirements`` the checks that all operators share, and one module per
operator says what it refuses and where it rounds.
"""
