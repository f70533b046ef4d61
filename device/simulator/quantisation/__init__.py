"""Quantisation: numbers to integers, packed weights, and products of integers.

``integers`` rounds and packs, ``groups`` finds the group of each row, and ``choices`` lists what no source settles. One
module per operator says what it refuses and where it rounds.
"""
