"""The virtual NPU: the real torch_npu on host memory, for machines without a card."""
