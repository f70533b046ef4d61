"""The default budget reaches the regions in which bugs were that no case had met."""

from __future__ import annotations

import pytest

from benchmarks.regions import SEEDS, reached, regions
from npudiff.run.discovery import component_names, load_component

FEW = range(3)


def few_of(name, seeds, least):
    """Regions that fewer seeds reach than should."""
    return {region: count for region, (count, _) in reached(load_component(name), seeds).items() if count < least}


@pytest.mark.few(5)
@pytest.mark.parametrize("name", [name for name in component_names() if regions(name)])
def test_some_seed_reaches_every_region(name):
    assert few_of(name, FEW, 2) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in component_names() if regions(name)])
def test_nearly_every_seed_reaches_every_region(name):
    assert few_of(name, SEEDS, round(0.8 * len(SEEDS))) == {}
