"""Operators that torch has under another name: activations, axes and orders, products of two matrices.

Sources: op-plugin's documentation, its host code (``op_plugin/ops/aclops``), which has the shapes, and its tests.
Where CANN's kernels round is not documented: they are taken to compute in float32 and to round once.
"""
