"""Cases of experts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from npudiff.model.constraints import Axis, check_axes
from npudiff.properties._shared import rows
from npudiff.reference.int4_pack import INTEGERS_OF_A_WORD
from npudiff.reference.swiglu import LAYOUTS, Activation
from npudiff.text import counted

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FORMS = ("float", "w8a8", "w4a8")
ACTIVATIONS = tuple(activation.value for activation in Activation)
LIMITS = (7.0, 1.5, 16.0)
LOADS = ("random", "same")
"""random: each token has experts of its own. same: all tokens have the same ones, the others none."""
HERE = ("all", "chosen", "local")
"""Whose matrices there are. chosen: of those experts that any token has. local: of the second half of all, as a rank of
expert parallelism has them; the other copies are left out."""
RECIPES = ("gaussian", "at limit", "zero rows", "outlier")
"""gaussian: gates and ups are about normal. at limit: about the limit times normal. zero rows: some rows hold nothing
but zeros. outlier: one element of each row is 64 times larger."""
GROUP_SIZE = 256

AXES = {
    "tokens": Axis("rows", range(1, 4097)),
    "hidden": Axis("elements of a row", range(1, 2**14)),
    "width": Axis("gates of an expert, and as many ups", range(1, 2**14)),
    "experts": Axis("experts", range(1, 1025)),
    "top_k": Axis("experts of a token", range(1, 65)),
    "form": Axis("what weights are; rows are int8 where these are integers", FORMS),
    "dtype": Axis("dtype of the states and the result", tuple(DTYPES)),
    "groups": Axis("scales of each column of the first matrix", range(1, 65)),
    "activation": Axis("what the configuration calls it", ACTIVATIONS),
    "limit": Axis("limit of routed experts", LIMITS, optional=True),
    "layout": Axis("where gates and ups lie", LAYOUTS),
    "biased": Axis("whether both products have a bias", (False, True)),
    "shared_width": Axis("width of the shared expert; 0 for none", range(2**14)),
    "shared_limit": Axis("limit of the shared expert", LIMITS, optional=True),
    "load": Axis("which experts tokens have", LOADS),
    "here": Axis("whose matrices there are", HERE),
    "recipe": Axis("how the states are made", RECIPES),
    "rows": rows.AXIS,
}

_MAX_WEIGHTS = 2**33
_MAX_ELEMENTS = 2**26


@dataclass(frozen=True)
class MoeExpertsCase:
    """One call, as sizes, configuration and recipes; see the axes for their meaning."""

    tokens: int
    hidden: int = 32
    width: int = 32
    experts: int = 2
    top_k: int = 1
    form: str = "float"
    dtype: str = "bfloat16"
    groups: int = 1
    activation: str = "silu"
    limit: float | None = None
    layout: str = "halves"
    biased: bool = False
    shared_width: int = 0
    shared_limit: float | None = None
    load: str = "random"
    here: str = "all"
    recipe: str = "gaussian"
    rows: str = "contiguous"
    seed: int = 0


def contradiction(case: MoeExpertsCase) -> str:
    """Return what a case has that does not go with the rest of it, or nothing."""
    sizes = (case.hidden, 2 * case.width, 2 * case.shared_width)
    checks = {
        "top_k": case.top_k > case.experts,
        "hidden": case.form == "w4a8" and any(size % INTEGERS_OF_A_WORD for size in sizes),
        "groups": case.groups > 1 and (case.form != "w4a8" or case.hidden != GROUP_SIZE * case.groups),
        "biased": case.biased and case.form != "float",
        "layout": case.layout == "interleaved" and case.activation != "swiglu_oai",
        "shared_limit": case.shared_limit is not None and not case.shared_width,
        "here": case.here == "local" and case.experts < 2,
    }
    return next((name for name, holds in checks.items() if holds), "")


def values(case: MoeExpertsCase) -> Mapping[str, Collection[object]]:
    """Return the values of each axis that the case uses."""
    used: dict[str, Collection[object]] = {name: (getattr(case, name),) for name in AXES}
    return used if case.shared_width else used | {"shared_limit": ()}


def features(case: MoeExpertsCase) -> Collection[str]:
    """Return the regions of the input space that the case is in."""
    checks = {
        case.form: True,
        case.activation: True,
        "limited": case.limit is not None and case.recipe == "at limit",
        "limits differ": bool(case.shared_width) and case.limit != case.shared_limit,
        "shared expert": bool(case.shared_width),
        "not all here": case.here == "local",
        "several scales": case.groups > 1,
        "more experts than copies": case.experts > case.tokens * case.top_k,
        "sliced rows": case.rows == "sliced" and case.tokens > 1,
        case.recipe: case.recipe != "gaussian",
    }
    return [name for name, holds in checks.items() if holds]


def describe(case: MoeExpertsCase) -> str:
    """Return the case as one short line."""
    limit = "" if case.limit is None else f" {case.limit:g}"
    shared = "" if case.shared_limit is None else f" {case.shared_limit:g}"
    parts = [
        f"{counted(case.tokens, 'token')} x {case.hidden}",
        f"top {case.top_k} of {case.experts} x {case.width}",
        case.form if case.form != "float" else "",
        case.dtype,
        f"{case.groups} scales a column" if case.groups > 1 else "",
        f"{case.activation}{limit}" if case.activation != "silu" or limit else "",
        case.layout if case.layout != "halves" else "",
        "biased" if case.biased else "",
        f"shared {case.shared_width}{shared}" if case.shared_width else "",
        f"load {case.load}" if case.load != "random" else "",
        f"{case.here} here" if case.here != "all" else "",
        case.recipe if case.recipe != "gaussian" else "",
        "sliced rows" if case.rows == "sliced" else "",
        f"seed {case.seed}" if case.seed else "",
    ]
    return " · ".join(part for part in parts if part)


def check_case(case: MoeExpertsCase) -> None:
    """Refuse a case that cannot be built, or that is larger than a test should be; raises ``ValueError``."""
    check_axes(case, AXES, free=("limit", "shared_limit"))
    for name in ("limit", "shared_limit"):
        limit = getattr(case, name)
        if limit is not None and not 1e-3 <= limit <= 1e4:
            raise ValueError(f"{name} must be none or lie in 0.001..10000, got {limit}")
    wrong = contradiction(case)
    if wrong:
        raise ValueError(f"{wrong} {getattr(case, wrong)} does not go with {describe(case)}")
    matrices = case.experts if case.here != "chosen" else min(case.experts, case.tokens * case.top_k)
    if 3 * matrices * case.hidden * case.width > _MAX_WEIGHTS:
        raise ValueError(f"matrices would have more than {_MAX_WEIGHTS} elements")
    if case.tokens * case.top_k * max(case.hidden, case.width) > _MAX_ELEMENTS:
        raise ValueError(f"copies of tokens would have more than {_MAX_ELEMENTS} elements")
