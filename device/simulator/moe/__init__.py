"""Routing of mixtures of experts: which experts a token goes to, in which order rows lie, and how they come back.

``gating`` chooses experts; ``init_routing``, ``init_routing_v2`` and ``token_permute`` put the rows of one expert
together, ``finalize_routing`` and ``token_permute`` bring them back. ``quantisation`` makes rows int8 on the way.

Two conventions of numbering the n * k pairs of a token and its j-th expert exist, and operators that belong together
use one: *column-major*, ``j * n + token`` (``npu_moe_gating_top_k_softmax``, ``npu_moe_init_routing``,
``npu_moe_finalize_routing`` with ``drop_pad_mode`` 0 and 1), and *row-major*, ``token * k + j`` (all others).
"""
