"""Calls of NPU operators in somebody's sources: which operators the simulator has, and which forms it may not serve.

The sources are read and never imported. A call counts by what stands there: ``torch_npu.NAME``,
``torch.ops.npu.NAME``, ``torch.ops.atb.NAME``, and the namespaces of other packages, ``torch.ops._C_ascend.NAME`` and
``torch.ops.custom.NAME``.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from npudiff.device.contract.acceptance import refusal
from npudiff.device.contract.calls import Call
from npudiff.device.simulator import library
from npudiff.device.simulator.schemas import namespace, qualified_name, unqualified

OURS = ("npu", "atb")
"""Namespaces of torch_npu."""

OTHERS = ("_C_ascend", "custom")
"""Namespaces of operators that other packages bring."""

TORCH_NPUS_OWN = frozenset({"get_npu_format", "get_storage_size", "empty_with_format"})
"""Operators without device code, which torch_npu runs itself on the virtual NPU."""

_OF_TORCH_NPU = re.compile(r"_?npu_\w+|get_npu_format|get_storage_size|empty_with_format|scatter_update_?|copy_memory_")

_NAMES_ONE = re.compile(rf"\b(?:torch_npu|{'|'.join((*OURS, *OTHERS))})\b")


@dataclass(frozen=True)
class Site:
    """One place that names an operator."""

    path: Path
    line: int
    space: str
    """Namespace."""
    name: str
    """Without namespace and overload."""
    overload: str
    """Empty where none is named."""
    call: Call | None
    """The form of the call, as far as it stands there; None where there is none, or it has ``*`` or ``**``."""
    texts: Mapping[str, str]
    """Keyword arguments that are written as texts or numbers."""


def sites(tree: Path) -> Iterator[Site]:
    """Yield every place below a folder that names an NPU operator; files that are no Python are left out."""
    for path in sorted(tree.rglob("*.py")) if tree.is_dir() else [tree]:
        try:
            text = path.read_text(encoding="utf-8")
            if not _NAMES_ONE.search(text):  # by far the most
                continue
            module = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        calls = {id(node.func): node for node in ast.walk(module) if isinstance(node, ast.Call)}
        inner = set[int]()
        for node in ast.walk(module):  # the outermost part of a dotted name comes first
            if not isinstance(node, ast.Attribute) or id(node) in inner:
                continue
            part = node.value
            while isinstance(part, ast.Attribute):
                inner.add(id(part))
                part = part.value
            named = _operator(_dotted(node))
            if named is not None:
                yield _site(path, node, named, calls.get(id(node)))


def _dotted(node: ast.expr) -> tuple[str, ...]:
    """Return the parts of ``a.b.c``; empty if it does not begin with a name."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return (node.id, *reversed(parts)) if isinstance(node, ast.Name) else ()


def _operator(parts: tuple[str, ...]) -> tuple[str, str, str] | None:
    """Return namespace, name and overload of an operator; None if it is none."""
    if parts[:2] == ("torch", "ops") and len(parts) > 3 and parts[2] in (*OURS, *OTHERS):
        return parts[2], parts[3], parts[4] if len(parts) > 4 else ""
    if parts[:2] == ("torch_npu", "atb") and len(parts) > 2:
        return "atb", parts[2], ""
    if parts[:1] == ("torch_npu",) and len(parts) > 1 and _OF_TORCH_NPU.fullmatch(parts[1]):
        space = "atb" if f"atb::{parts[1]}" in served() else "npu"  # torch_npu has names for those as well
        return space, parts[1], parts[2] if len(parts) > 2 else ""
    return None


def _site(path: Path, node: ast.Attribute, named: tuple[str, str, str], call: ast.Call | None) -> Site:
    space, name, overload = named
    if (
        call is None
        or any(isinstance(one, ast.Starred) for one in call.args)
        or any(not one.arg for one in call.keywords)
    ):
        return Site(path, node.lineno, space, name, overload, None, {})
    keywords = {str(one.arg): one.value for one in call.keywords}
    form = Call(name, (frozenset(),) * len(call.args), {key: frozenset() for key in sorted(keywords)})
    texts = {key: repr(value.value) for key, value in keywords.items() if isinstance(value, ast.Constant)}
    return Site(path, node.lineno, space, name, overload, form, texts)


@cache
def served() -> Mapping[str, Sequence[str]]:
    """Return schemas of all simulated operators, by ``namespace::name``."""
    found: dict[str, list[str]] = defaultdict(list)
    for operator in library.operators():
        name = qualified_name(operator.schema).partition(".")[0]
        found[f"{namespace(operator.schema)}::{name}"].append(unqualified(operator.schema))
    return dict(found)


@cache
def partly_simulated() -> frozenset[tuple[str, str]]:
    """Return (family, argument) where the simulator says of some values that they are not simulated.

    It is read from the simulator's own sources: the first argument of ``not_simulated``, where it is a text.
    """
    found = set[tuple[str, str]]()
    for path in sorted(Path(library.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "not_simulated"
            ):
                first = node.args[0] if node.args else None
                if isinstance(first, ast.Constant) and isinstance(first.value, str):
                    found.add((path.parent.name, first.value))
    return frozenset(found)


@cache
def _family() -> Mapping[str, str]:
    """Return the family of each simulated operator, by its name."""
    return {
        qualified_name(operator.schema).partition(".")[0]: family
        for family in library.FAMILIES
        for operator in library.operators_of(family)
    }


def report(tree: Path) -> Iterator[str]:
    """Yield lines: how many names and calls of a namespace have a kernel, which have none, which forms may not run."""
    found = list(sites(tree))
    spaces = [space for space in (*OURS, *OTHERS) if any(site.space == space for site in found)]
    yield f"{tree}: {len(found)} places name an NPU operator"
    for space in spaces:
        yield _share(space, [site for site in found if site.space == space])
    if len([space for space in spaces if space in OURS]) > 1:
        yield _share("npu and atb", [site for site in found if site.space in OURS])
    for space in spaces:
        missing = Counter(site.name for site in found if site.space == space and not has_kernel(site))
        if missing:
            listed = ", ".join(f"{name} {count}" for name, count in missing.most_common())
            yield f"no kernel, {space}: {listed}"
    yield from _forms([site for site in found if has_kernel(site)], tree)


def has_kernel(site: Site) -> bool:
    """Whether the virtual NPU has the operator, in whatever forms."""
    return f"{site.space}::{site.name}" in served() or site.name in TORCH_NPUS_OWN


def _share(label: str, found: Sequence[Site]) -> str:
    names = {site.name for site in found}
    with_kernel = [site for site in found if has_kernel(site)]
    share = 100 * len(with_kernel) / len(found)
    return (
        f"{label}: {len({site.name for site in with_kernel})} of {len(names)} names, "
        f"{len(with_kernel)} of {len(found)} places ({share:.1f} %) have a kernel"
    )


def _forms(found: Iterable[Site], tree: Path) -> Iterator[str]:
    """Yield calls that do not bind to a schema, and arguments of which the simulator has not every value."""
    partly: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for site in found:
        if site.call is None or site.name in TORCH_NPUS_OWN:
            continue
        reasons = [refusal(site.call, schema) for schema in served()[f"{site.space}::{site.name}"]]
        if all(reasons):
            place = site.path.relative_to(tree) if tree.is_dir() else site.path
            yield f"does not bind: {place}:{site.line} {site.space}::{site.name}: {reasons[0]}"
        family = _family().get(site.name, "")
        for argument in site.call.keywords:
            if (family, argument) in partly_simulated():
                partly[site.name, argument][site.texts.get(argument, "a value")] += 1
    for (name, argument), values in sorted(partly.items()):
        listed = ", ".join(f"{value} {count}" for value, count in values.most_common() if value != "None")
        if listed:
            yield f"not every value is simulated: {name}({argument}=): {listed}"
