"""RMS norms, alone and fused with what comes before or after them.

``rms`` has the arithmetic and its rounding chains; ``rms_norm`` and ``add_rms_norm`` are operators, as are
``rms_norm_quant``, ``add_rms_norm_quant`` and ``add_rms_norm_dynamic_quant``, which end in integers; ``choices`` lists
what no source settles of these three. The fused
``npu_kv_rmsnorm_rope_cache`` is ``kv_request`` (its arguments and what is refused), ``kv_slots`` (where a
token goes), and ``kv_rmsnorm_rope_cache`` (what is computed and written). ``unwritten`` stands for memory
that an operator allocates and does not fill.
"""
