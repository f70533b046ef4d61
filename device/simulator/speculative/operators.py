"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.library import Operator
from npudiff.device.simulator.speculative import schemas
from npudiff.device.simulator.speculative.advance_step import advance_step, advance_step_meta
from npudiff.device.simulator.speculative.build_tree import TreeRequest, build_tree, build_tree_meta
from npudiff.device.simulator.speculative.cache_locations import cache_loc_update, cache_loc_update_meta

OPERATORS = (
    Operator(schemas.ADVANCE_STEP, advance_step, advance_step_meta),
    Operator(schemas.BUILD_TREE, build_tree, build_tree_meta, request=TreeRequest),
    Operator(schemas.CACHE_LOC_UPDATE, cache_loc_update, cache_loc_update_meta),
)
"""Every operator of the family."""
