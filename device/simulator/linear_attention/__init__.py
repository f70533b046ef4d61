"""Linear attention with a state: causal convolutions over channels, and gated delta rules.

``causal_conv1d`` is the convolution in front of them, ``recurrent`` the rule token by token with states in a pool, and
``chunk_rule`` the rule in chunks of 64 tokens; ``sgl_recurrent`` and ``sgl_chunk`` are sgl-kernel-npu's. ``rule`` has
the arithmetic of one token and of one chunk, ``shared_states`` says what becomes of states that sequences share, and
``choices`` lists what no source settles.
"""
