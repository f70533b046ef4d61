"""Products of matrices with transpositions in one operator.

``permutations`` says which axis is which, ``transpose_batchmatmul`` and ``transpose_quant_batchmatmul`` are operators,
``batch_matmul_transpose`` is sgl-kernel-npu's, and ``choices`` lists what no source settles.
"""
