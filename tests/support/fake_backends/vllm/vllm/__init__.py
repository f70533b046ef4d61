"""A package with the shapes of vllm that vllm-ascend replaces or reads, for tests of its adapters."""

__version__ = "0.0.fake"
