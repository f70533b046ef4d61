"""Linear attention with a state: causal convolutions over channels, and gated delta rules.

``causal_conv1d`` is the convolution in front of them, ``recurrent`` the rule token by token with states in a pool
(torch_npu's and sgl-kernel-npu's operators), ``chunk`` the rule in chunks of 64 tokens. ``rule`` has the arithmetic of
one token and of one chunk, ``choices`` lists what no source settles.
"""
