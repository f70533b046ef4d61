"""What is right: pure-PyTorch references with a float64 value and a per-element error bound.

This room imports torch and the standard library, nothing else. Each module holds one component: its *inputs*
(a frozen dataclass, the contract that every implementation is called with) and its *reference*.
"""
