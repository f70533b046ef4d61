"""What a case of the activation of quantised experts is: one frozen descriptor of a call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import Axis, check_axes
from npudiff.properties._shared import rows
from npudiff.reference.swiglu import ROUNDINGS, Activation
from npudiff.reference.swiglu_quant import GATES
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
SUMS = ("none", "small", "beyond 2**24")
"""none: the states are numbers of the dtype. small: int32 sums of some thousands. beyond 2**24: sums that float32 does
not hold, up to the end of int32."""
ACTIVATIONS = tuple(activation.value for activation in Activation)
LIMITS = (7.0, 10.0, 1.5, 7.1, 0.5)
ALPHAS = (1.702, 1.0, 0.5)
BIASES = (1.0, 0.0, 0.5)
LOADS = ("any", "one gets all", "first gets none")
"""any: rows go to any groups. one gets all: the last group has all rows. first gets none: the others have them."""
RECIPES = ("gaussian", "at limit", "beyond", "zero rows", "outlier")
"""gaussian: within the limit. at limit: gates and ups around the limit, of both signs. beyond: three times the limit.
zero rows: some rows hold nothing but zeros. outlier: one up of a row is 64 times larger."""

AXES = {
    "tokens": Axis("rows that belong to a group", range(1, 2**16 + 1)),
    "width": Axis("gates of a row, and as many ups", range(1, 2**16 + 1)),
    "sums": Axis("whether the states are sums of int8 products, and how large", SUMS),
    "dtype": Axis("dtype of the model", tuple(DTYPES)),
    "bias": Axis("whether something is added to the sums", (False, True)),
    "smooth": Axis("whether there are factors before quantisation", (False, True)),
    "groups": Axis("groups of rows with scales of their own; none for a call without counts", range(1, 1025), True),
    "load": Axis("how rows are spread over groups", LOADS),
    "spare_rows": Axis("rows behind those of all groups", range(2**16)),
    "activation": Axis("what the configuration calls it", ACTIVATIONS),
    "limit": Axis("limit of swiglustep and swiglu_oai", LIMITS),
    "alpha": Axis("factor in the sigmoid of swiglu_oai", ALPHAS),
    "glu_bias": Axis("what swiglu_oai adds to the up", BIASES),
    "gates": Axis("which columns are gates", GATES),
    "recipe": Axis("how gates and ups are made", RECIPES),
    "rounding": Axis("whether a device may round between operations, or once at the end only", ROUNDINGS),
    "rows": rows.AXIS,
}

_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class SwigluQuantCase:
    """One call, as sizes, configuration and a recipe; see the axes for their meaning."""

    tokens: int
    width: int = 64
    sums: str = "none"
    dtype: str = "bfloat16"
    bias: bool = False
    smooth: bool = False
    groups: int | None = None
    load: str = "any"
    spare_rows: int = 0
    activation: str = "silu"
    limit: float = 7.0
    alpha: float = 1.702
    glu_bias: float = 1.0
    gates: str = "left"
    recipe: str = "gaussian"
    rounding: str = "stages"
    rows: str = "contiguous"
    seed: int = 0

    @property
    def limited(self) -> bool:
        """Whether the activation has a limit."""
        return self.activation != "silu"

    @property
    def all_rows(self) -> int:
        """Rows of the states."""
        return self.tokens + self.spare_rows


def values(case: SwigluQuantCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    unused = {
        "limit": case.limited,
        "alpha": case.activation == "swiglu_oai",
        "glu_bias": case.activation == "swiglu_oai",
        "load": case.groups is not None,
        "spare_rows": case.groups is not None,
    }
    return {name: (getattr(case, name),) if unused.get(name, True) else () for name in AXES}


def features(case: SwigluQuantCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        "sums": case.sums != "none",
        "sums beyond 2**24": case.sums == "beyond 2**24",
        "several groups": (case.groups or 1) > 1,
        "rows to spare": case.spare_rows > 0,
        "smooth": case.smooth,
        "bias": case.bias,
        "at the limit": case.limited and case.recipe in ("at limit", "beyond"),
        case.activation: True,
        f"{case.gates} gates": case.gates != "left",
        case.load: case.groups is not None and case.load != "any",
        "odd width": case.width % 2 == 1,
        "sliced rows": case.rows == "sliced" and case.tokens > 1,
        case.recipe: case.recipe != "gaussian",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: SwigluQuantCase) -> str:
    """Return the case as one short line."""
    oai = case.activation == "swiglu_oai"
    grouped = case.groups is not None
    parts = [
        f"{counted(case.tokens, 'token')} x {case.width}",
        f"{case.sums} sums" if case.sums == "small" else f"sums {case.sums}" if case.sums != "none" else "",
        counted(case.groups or 0, "group") if grouped else "",
        case.load if grouped and case.load != "any" else "",
        counted(case.spare_rows, "spare row") if case.spare_rows else "",
        "bias" if case.bias else "",
        case.activation,
        f"limit {case.limit:g}" if case.limited else "",
        f"alpha {case.alpha:g}" if oai else "",
        f"plus {case.glu_bias:g}" if oai and case.glu_bias != 1 else "",
        f"{case.gates} gates" if case.gates != "left" else "",
        "smooth" if case.smooth else "",
        case.dtype,
        case.recipe if case.recipe != "gaussian" else "",
        "one rounding" if case.rounding == "once" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: SwigluQuantCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    check_axes(case, AXES, free=("limit", "alpha", "glu_bias"))
    if case.spare_rows and case.groups is None:
        raise ValueError("spare_rows without groups")
    if case.bias and (case.sums == "none" or case.groups is not None):
        raise ValueError("a bias needs sums, and a call without groups")
    if 2 * max(case.all_rows, case.groups or 1) * case.width > _MAX_ELEMENTS:
        raise ValueError(f"the states would have more than {_MAX_ELEMENTS} elements")
    if not 1e-3 <= case.limit <= 1e4 or not abs(case.alpha) <= 100 or not abs(case.glu_bias) <= 100:
        raise ValueError("limit, alpha or glu_bias out of range")
