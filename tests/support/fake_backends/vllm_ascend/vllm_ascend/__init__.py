"""A package with the shapes of vllm-ascend, for tests of the adapters: what they touch of it, computed in plain torch.

Every function was written from what it is for. None is vllm-ascend's, and none is fast.
"""
