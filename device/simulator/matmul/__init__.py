"""Products of matrices with transpositions in one operator.

``permutations`` says which axis is which, ``transpose_batchmatmul`` and ``transpose_quant_batchmatmul`` are operators,
and ``choices`` lists what no source settles.
"""
