"""``npudiff list``: what there is, and what it supports."""

from __future__ import annotations

import argparse

from npudiff.errors import ExitCode
from npudiff.judge.others import properties_with_others
from npudiff.model.backend import wished
from npudiff.model.component import Component
from npudiff.model.implementation import Implementation
from npudiff.run.backends import load_backend
from npudiff.run.discovery import default_target, load_components, select_implementations, target_names
from npudiff.show.console import Console


def listing(options: argparse.Namespace) -> int:
    """Run ``npudiff list`` and return its exit code."""
    components = load_components(options.components)
    for wish in wished(options.impl):  # a backend is imported beside its device
        default_target(None, load_backend(wish.name).target)
    implementations = select_implementations(components, options.impl)
    console = Console(verbose=False)
    for component in components:
        own = [item for item in implementations if item.component == component.name]
        console.lines(_summary(component, own, full=bool(options.components)))
    console.lines([f"targets: {', '.join(target_names())}"])
    return ExitCode.CLEAN


def _summary(component: Component, implementations: list[Implementation], *, full: bool) -> list[str]:
    lines = [f"{component.name}: {component.summary}"]
    for title, chosen in (
        ("implementations", [item for item in implementations if item.wrong is None]),
        ("wrong on purpose", [item for item in implementations if item.wrong is not None]),
    ):
        lines += [f"  {title}"] if chosen else []
        for item in chosen:
            lines.append(f"    {item.name:26} {item.summary}")
            if full and item.wrong:
                lines.append(f"    {'':26} {item.wrong}")
            if full:
                lines += [f"    {'':26} option {name}: {', '.join(values)}" for name, values in item.options.items()]
                lines += [f"    {'':26} supports {line}" for line in item.constraints.summary()]
    if full:
        lines += ["  properties"]
        named = {prop.name: prop for item in implementations for prop in properties_with_others(component, item)}
        lines += [f"    {name:26} {prop.summary}" for name, prop in named.items()]
        lines += ["  axes, for --where and supports="]
        for name, axis in component.axes.items():
            lines += [f"    {name:26} {axis.meaning}", f"    {'':26} {axis.options}"]
        lines += ["  models, for --model", f"    {', '.join(sorted(component.profiles)) or 'none'}"]
    return [*lines, ""]
