"""Recording: ``python -m npudiff.device.contract calls``, or ``versions WHEEL...``; reading: ``--calls TREE``."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from npudiff.device import targets
from npudiff.device.contract.calls import Call, recorded_calls, watching, write_calls
from npudiff.device.contract.drawing import implementations, run_drawn
from npudiff.device.contract.listing import ListingError, read_listing
from npudiff.device.contract.trees import report
from npudiff.device.contract.versions import Wheel, recorded_wheels, write_wheels
from npudiff.run.discovery import load_components

EXAMPLES = 200
"""Cases of each implementation from which the forms of calls are recorded."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Record, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m npudiff.device.contract", description="Write the files of the contract."
    )
    parser.add_argument(
        "--calls",
        dest="trees",
        nargs="+",
        type=Path,
        metavar="TREE",
        help="tell the NPU operators that sources call",
    )
    commands = parser.add_subparsers(dest="command")
    calls = commands.add_parser("calls", help="record the forms of the calls that the adapters make")
    calls.add_argument(
        "components", nargs="*", metavar="COMPONENT", help="add those of some components; all by default"
    )
    calls.add_argument("--examples", type=int, default=EXAMPLES, help="cases of each implementation")
    versions = commands.add_parser("versions", help="add versions to the table, or read them again")
    versions.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL")
    options = parser.parse_args(arguments)
    try:
        if options.trees:
            return _trees(options.trees)
        if options.command is None:
            parser.error("one of calls, versions, --calls TREE")
        if options.command == "calls":
            return _calls(options.components, options.examples)
        return _versions(options.wheels)
    except (ListingError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1


def _calls(components: Sequence[str], examples: int) -> int:
    known = recorded_calls().values()
    made = list(_made(components, examples))
    before = {str(call) for call in known}
    write_calls([*known, *made] if components else made)
    after = {str(call) for call in recorded_calls().values()}
    for sign, texts in (("+", after - before), ("-", before - after)):
        for text in sorted(texts):
            print(sign, text)
    print(f"{len(after)} forms of {len(made)} calls")
    return 0


def _trees(trees: Sequence[Path]) -> int:
    for tree in trees:
        for line in report(tree):
            print(line)
    return 0


def _made(components: Sequence[str], examples: int) -> Iterator[Call]:
    """Run components, or everything, and yield the calls."""
    target = targets.sim(None)
    for component in load_components(components):
        for item in implementations(component):
            calls: list[Call] = []
            with watching(calls.append):
                outcome = run_drawn(component, item, target, examples)
            if outcome.failure is not None:
                raise OSError(f"{component.name}.{item.name} fails on {outcome.failure.case}: {outcome.failure.error}")
            yield from calls


def _versions(paths: Sequence[Path]) -> int:
    wheels = {wheel.listing.version: wheel for wheel in recorded_wheels()}
    for path in paths:
        listing = read_listing(path)
        wheels[listing.version] = Wheel(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), listing)
        print(f"{listing.version}: {len(listing.schemas)} schemas")
    write_wheels(wheels.values())
    return 0


if __name__ == "__main__":
    sys.exit(main())
