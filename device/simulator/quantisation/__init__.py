"""Quantisation: numbers to integers, packed weights, and products of integers.

``integers`` has the rounding and the packing, ``groups`` says which group a row is of, ``requirements`` the checks
that these operators and those of ``activation`` share, ``choices`` what no source settles, and one module per operator
says what it refuses and where it rounds.
"""
