"""CPU kernels of ``npu_fused_infer_attention_score``, its second version, and attention beside it.

``request`` normalises the arguments of both versions, ``shapes`` and the ``*checks`` modules say what is
refused, ``layouts`` and ``paging`` find the rows and keys of one sequence, ``sparse_modes`` and ``visibility`` say who
sees whom, ``flash`` computes, and ``operators`` puts them together. ``update`` is the operator that merges,
``npu_attention_update``, and ``fusion`` the one that models are trained with, ``npu_fusion_attention``, with
``fusion_grad`` for its gradients.
"""
