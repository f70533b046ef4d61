"""CPU kernels of ATB's attention: ``_npu_paged_attention`` for decoding, ``_npu_flash_attention`` and its relatives.

``schemas`` and ``choices`` say what there is and what is not settled, ``checks`` what all of them refuse,
``arithmetic`` how they compute, ``paged`` those that read a
paged cache, ``packed`` those that get keys and values in one piece.
"""
