"""What comes before multi-head latent attention, fused into one operator.

From the hidden states both operators make the query, projected into the space of the latents, the part of it that
turns with the position, and the latent and the key's turning part of each token, which they write into paged caches.

``npu_mla_prolog`` in all its versions is torch_npu's: ``prolog_checks`` (its arguments and what is refused), ``prolog``
(what is computed). ``mla_preprocess`` is sgl-kernel-npu's, an int8 operator:
``preprocess_checks`` and ``preprocess``. ``stages`` has the arithmetic of both, ``pages`` how they write caches.
"""
