"""Products of matrices with transpositions or an addition in one operator.

``permutations`` says which axis is which, ``transpose_batchmatmul``, ``transpose_quant_batchmatmul`` and ``add_fp32``
are operators, ``batch_matmul_transpose`` is sgl-kernel-npu's, and ``choices`` lists what no source settles.
"""
