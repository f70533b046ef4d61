"""Low-rank adapters of sgl-kernel-npu: ``sgemmv`` shrinks hidden states to a rank, and expands them into outputs."""
