"""What speculative decoding keeps: trees of drafted tokens, and where their keys are; all of sgl-kernel-npu."""
