"""What the wheels of torch_npu list of the simulated operators: recorded facts, and the wheels they come from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npudiff.device.contract.listing import Listing
from npudiff.device.simulator.schemas import SCHEMAS, namespace, qualified_name
from npudiff.files.writing import write_file

RECORDED_VERSIONS = Path(__file__).with_name("versions.json")

BASE = "2.13.0"
"""The version that the adapters are written for, and whose schemas the simulator records."""

BASE_SCHEMAS: Mapping[str, str] = {qualified_name(one): one for one in SCHEMAS if namespace(one) == "npu"}
"""Schemas of the simulated operators that a listing can have, by ``name`` or ``name.overload``."""

_OTHERS = "others"


@dataclass(frozen=True)
class Wheel:
    """A wheel that was read."""

    file: str
    """Its name."""
    sha256: str
    """Digest of the file."""
    listing: Listing
    """Its schemas of the simulated operators; one that it does not list is not in it."""


def version_key(version: str) -> tuple[int, ...]:
    """Order versions: ``2.9.0`` before ``2.9.0.post2``, and that before ``2.9.1`` and ``2.10.0``."""
    release, _, post = version.partition(".post")
    return (*(int(part) for part in re.findall(r"\d+", release)), int(post or -1))


def recorded_wheels(path: Path = RECORDED_VERSIONS) -> list[Wheel]:
    """Return the recorded wheels, from old to new."""
    content = json.loads(path.read_text(encoding="utf-8"))
    wheels: dict[str, Any] = content["wheels"]
    schemas: dict[str, dict[str, str]] = {version: {} for version in wheels}
    for name, variants in content["schemas"].items():
        left = set(wheels)
        for variant in sorted(variants, key=lambda one: one["versions"] == _OTHERS):
            versions = left.copy() if variant["versions"] == _OTHERS else set(variant["versions"].split())
            left -= versions
            for version in versions if variant["schema"] is not None else ():
                schemas[version][name] = variant["schema"]
    return [
        Wheel(wheels[version]["file"], wheels[version]["sha256"], Listing(version, wheels[version]["file"], listed))
        for version, listed in sorted(schemas.items(), key=lambda item: version_key(item[0]))
    ]


def of_simulated(listing: Listing) -> Listing:
    """Return a listing's schemas of the simulated operators, with all their overloads."""
    operators = {name.partition(".")[0] for name in BASE_SCHEMAS}
    kept = {name: text for name, text in listing.schemas.items() if name.partition(".")[0] in operators}
    return Listing(listing.version, listing.source, kept)


def write_wheels(wheels: Iterable[Wheel], path: Path = RECORDED_VERSIONS) -> None:
    """Record wheels: each schema once, with the versions that have it; the one that most have, for all others."""
    ordered = sorted(wheels, key=lambda wheel: version_key(wheel.listing.version))
    listings = [of_simulated(wheel.listing) for wheel in ordered]
    content = {
        "about": "Schemas of the simulated operators in the listings of torch_npu's wheels, as they are registered; "
        "null where the operator is not listed. Written by: python -m npudiff.device.contract versions WHEEL...",
        "wheels": {wheel.listing.version: {"file": wheel.file, "sha256": wheel.sha256} for wheel in ordered},
        "schemas": {
            name: _variants({one.version: one.schemas.get(name) for one in listings})
            for name in sorted({name for one in listings for name in one.schemas} | set(BASE_SCHEMAS))
        },
    }
    write_file(path, json.dumps(content, indent=1) + "\n")


def _variants(schemas: Mapping[str, str | None]) -> list[dict[str, str | None]]:
    versions: dict[str | None, list[str]] = {}
    for version, schema in schemas.items():
        versions.setdefault(schema, []).append(version)
    most = max(versions, key=lambda schema: len(versions[schema]))
    rest = [{"schema": schema, "versions": " ".join(having)} for schema, having in versions.items() if schema != most]
    return [{"schema": most, "versions": _OTHERS}, *rest]
