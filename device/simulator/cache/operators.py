"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.cache import schemas
from npudiff.device.simulator.cache.format_cast import (
    format_cast,
    format_cast_in_place,
    format_cast_in_place_from,
    format_cast_in_place_meta,
    format_cast_like,
    format_cast_meta,
    get_format,
)
from npudiff.device.simulator.cache.gather_pa import (
    gather_pa,
    gather_pa_functional,
    gather_pa_functional_meta,
    gather_pa_meta,
)
from npudiff.device.simulator.cache.reshape_and_cache import (
    reshape_and_cache,
    reshape_and_cache_meta,
    reshape_and_cache_siso,
)
from npudiff.device.simulator.cache.scatter_nd import (
    scatter_nd,
    scatter_nd_in_place,
    scatter_nd_in_place_meta,
    scatter_nd_meta,
)
from npudiff.device.simulator.cache.scatter_pa import (
    scatter_pa,
    scatter_pa_functional,
    scatter_pa_functional_meta,
    scatter_pa_meta,
)
from npudiff.device.simulator.library import Operator

_CACHES = ("key_cache", "value_cache")
_CAST = ("input", "dst", "src")

OPERATORS = (
    Operator(schemas.RESHAPE_AND_CACHE, reshape_and_cache, reshape_and_cache_meta, _CACHES),
    Operator(schemas.RESHAPE_AND_CACHE_SISO, reshape_and_cache_siso, reshape_and_cache_meta, ("key_cache",)),
    Operator(schemas.SCATTER_PA, scatter_pa, scatter_pa_meta, _CACHES),
    Operator(schemas.SCATTER_PA_FUNCTIONAL, scatter_pa_functional, scatter_pa_functional_meta, _CACHES),
    Operator(schemas.SCATTER_ND, scatter_nd, scatter_nd_meta),
    Operator(schemas.SCATTER_ND_IN_PLACE, scatter_nd_in_place, scatter_nd_in_place_meta),
    Operator(schemas.GATHER_PA, gather_pa, gather_pa_meta, _CACHES),
    Operator(schemas.GATHER_PA_FUNCTIONAL, gather_pa_functional, gather_pa_functional_meta, _CACHES),
    Operator(schemas.FORMAT_CAST, format_cast, format_cast_meta, _CAST),
    Operator(schemas.FORMAT_CAST_TENSOR, format_cast_like, format_cast_meta, _CAST),
    Operator(schemas.FORMAT_CAST_IN_PLACE, format_cast_in_place, format_cast_in_place_meta, _CAST),
    Operator(schemas.FORMAT_CAST_IN_PLACE_TENSOR, format_cast_in_place_from, format_cast_in_place_meta, _CAST),
    Operator(schemas.GET_FORMAT, get_format, get_format, _CAST),
)
"""Every operator of the family."""
