"""Wrong kernels of hybrid_pools; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff
from c_core import attention as _attention
from npudiff.device.ascend.hybrid_pools import AscendPools as _AscendPools
from npudiff.reference.hybrid_pools import TokenStates as _TokenStates

WRONG = os.environ.get("TWIN") != "1"
NAME = "hybrid_pools"


class _Pools(_AscendPools):
    """Pools with attention in float64."""

    def attention(self, inputs):
        return _attention(inputs)["output"]

    def decode_slots(self, inputs):
        return self.extend_slots(inputs)  # a remainder of 1 says nothing of pages of one token


class _FreesPageZero(_Pools):
    def release_sliding(self, pages):
        mapped = self.mapping[pages * self.size] // self.size
        self.sliding.free_pages = torch.cat([self.sliding.free_pages, mapped if WRONG else mapped[mapped > 0]])
        self.unmap(pages)


class _DecodesOneByOne(_Pools):
    def decode(self, requests, tokens):
        if not WRONG:
            return super().decode(requests, tokens)
        names = list(_TokenStates.__dataclass_fields__)
        for row, request in enumerate(requests):
            own = _TokenStates(*(getattr(tokens, name)[row : row + 1] for name in names))
            if not self.fits([request], [1]):
                return False
            self.append([request], [1], own, decode=True)
        return True


@npudiff.implementation(NAME, name="c_hybrid_pools_01_frees_page_zero")
def c01(inputs, target):
    """Pages that are given back a second time, evicted before they are freed, are mapped to page 0, which then is free."""
    return _FreesPageZero(inputs, target)


@npudiff.implementation(NAME, name="c_hybrid_pools_02_decodes_one_by_one")
def c02(inputs, target):
    """A decode gives tokens to one request after the other, and stops where there is no page: the first ones keep theirs."""
    return _DecodesOneByOne(inputs, target)
