"""The contract: what each version of torch_npu makes of the calls that the adapters make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from npudiff.device.contract.acceptance import answer
from npudiff.device.contract.calls import Call, recorded_calls
from npudiff.device.contract.listing import Listing, ListingError, installed_folder, read_listing
from npudiff.device.contract.versions import BASE, BASE_SCHEMAS, Wheel, recorded_wheels
from npudiff.device.simulator.schemas import SCHEMAS_OF_OTHER_PACKAGES, qualified_name
from npudiff.errors import UsageError
from npudiff.model.contract import Answer, Contract, Release, Standing

NOT_LISTED = "registered by libop_plugin_atb.so, and no listing has it"


def contract(paths: Sequence[Path]) -> Contract:
    """Return what versions of torch_npu make of the recorded calls, without importing torch_npu.

    The recorded versions are always there, and an installed torch_npu is always read. Judged are the installed one and
    those of ``paths``, or, where there are none, the version that the adapters are written for.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        Wheels, unpacked wheels or package folders.

    Raises
    ------
    UsageError
        If one of them, or the installed package, has no listing that can be read.
    """
    calls = list(recorded_calls().values())
    wheels = recorded_wheels()
    here = [("installed", folder)] if (folder := installed_folder()) else []
    here += [("given", path) for path in paths]
    releases = [
        Release(one.version, one.source, answers(calls, one), judged=not here and one.version == BASE)
        for one in (wheel.listing for wheel in wheels)
    ]
    for where, path in here:
        listing = _read(path)
        releases.append(Release(f"{listing.version} ({where})", str(path), answers(calls, listing), judged=True))
    return Contract("torch_npu", BASE, len(calls), tuple(releases), tuple(_notes(wheels)))


def _read(path: Path) -> Listing:
    try:
        return read_listing(path)
    except ListingError as error:
        raise UsageError(f"--contract: {error}") from None


def answers(calls: Sequence[Call], listing: Listing) -> dict[str, Answer]:
    """Return what a version makes of every operator that is called: the worst of what it makes of its calls."""
    result: dict[str, Answer] = {}
    rank = list(Standing).index
    for call in calls:
        one = _unlisted(call.operator) or answer(call, listing.schemas, BASE_SCHEMAS)
        known = result.setdefault(call.operator, one)
        if rank(one.standing) > rank(known.standing):
            result[call.operator] = one
    return result


def _unlisted(operator: str) -> Answer | None:
    """The answer for an operator that is not in any listing, whatever the version."""
    if "::" in operator:
        return Answer(Standing.UNKNOWN, NOT_LISTED)
    for package, schemas in SCHEMAS_OF_OTHER_PACKAGES.items():
        if operator in map(qualified_name, schemas):
            return Answer(Standing.UNKNOWN, f"an operator of {package}, not of torch_npu")
    return None


def _notes(wheels: Sequence[Wheel]) -> list[str]:
    """Say what was read, and which schemas change from version to version without a call noticing."""
    listings = [wheel.listing.schemas for wheel in wheels]
    changing = sorted(name for name in BASE_SCHEMAS if len({one.get(name) for one in listings}) > 1)
    first, last = wheels[0].listing.version, wheels[-1].listing.version
    return [
        f"recorded from the listings of {len(wheels)} wheels, {first} to {last}: device/contract/versions.json",
        f"{len(changing)} of {len(BASE_SCHEMAS)} schemas differ between them; below is what the calls notice of that",
    ]
