"""L2 normalisation of rows: its cases, data, and what must hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from npudiff.draw.cases import Case, axis, seed
from npudiff.draw.data import Stream
from npudiff.judge.relations import tokens_do_not_mix
from npudiff.model.component import Component
from npudiff.reference.l2_norm import L2NormInputs, l2_norm

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SCALES = {"usual": 1.0, "tiny": 1e-3}


@dataclass(frozen=True)
class L2NormCase(Case):
    """One call of the norm."""

    tokens: int = axis("rows", range(1, 2**16 + 1), drawn=(1, 2, 3, 17, 257), shown="")
    width: int = axis("elements of a row", range(1, 2**13 + 1), 64, drawn=(2, 3, 64, 128, 100, 1000),
                      shown=lambda case: f"{case.tokens} x {case.width}")  # fmt: skip
    dtype: str = axis("dtype of the rows", tuple(DTYPES), "bfloat16")
    scale: str = axis("tiny: epsilon decides", tuple(SCALES), "usual", shown="{} rows", region="{} rows")
    seed: int = seed()

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.tokens * self.width > 2**24:
            yield f"there would be more than {2**24} elements"


def build_inputs(case: L2NormCase) -> L2NormInputs:
    """Build the inputs of a case."""
    x = Stream(case.seed, "x").normal((case.tokens, case.width), torch.float32) * SCALES[case.scale]
    return L2NormInputs(x.to(DTYPES[case.dtype]), epsilon=1e-6)


def coordinates(inputs: L2NormInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to an output: token and column."""
    del output  # there is one
    return {"token": torch.arange(len(inputs.x)).unsqueeze(1), "column": torch.arange(inputs.x.shape[1])}


component = Component(
    name="l2_norm",
    summary="L2 normalisation of rows",
    case_type=L2NormCase,
    outputs=("y",),
    inputs=build_inputs,
    reference=l2_norm,
    coordinates=coordinates,
    relations=(tokens_do_not_mix("x"),),
)
