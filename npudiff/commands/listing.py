"""``npudiff list``: what there is, and what it supports."""

from __future__ import annotations

import argparse
import dataclasses

from npudiff.errors import ExitCode
from npudiff.model.backend import wished
from npudiff.run.backends import load_backend
from npudiff.run.discovery import add_own, default_target, load_components, select_implementations, target_names
from npudiff.show.console import Console
from npudiff.show.listing import lines_of, listed


def listing(options: argparse.Namespace) -> int:
    """Run ``npudiff list`` and return its exit code."""
    own = [name for selector in options.own for name in add_own(selector)]
    components = load_components(options.components or own)
    for wish in wished(options.impl):  # a backend is imported beside its device
        default_target(None, load_backend(wish.name).target)
    implementations = select_implementations(components, options.impl)
    console = Console(verbose=False)
    found = [listed(component, implementations) for component in components]
    targets = target_names()
    if options.json is not None:
        options.json.content = lambda: {
            "components": [dataclasses.asdict(one) for one in found],
            "targets": targets,
        }
    for one in found:
        console.lines(lines_of(one, full=bool(options.components or own)))
    console.lines([f"targets: {', '.join(targets)}"])
    return ExitCode.CLEAN
