"""A package with the shapes of sglang, for tests of the adapters: what they touch of it, computed in plain torch.

Every function was written from what it is for. None is sglang's, and none is fast.
"""

__version__ = "0.0.fake"
