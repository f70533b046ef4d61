"""The operators of this family."""

from __future__ import annotations

from npudiff.device.simulator.cache import format_cast as cast
from npudiff.device.simulator.cache import gather_pa as gather
from npudiff.device.simulator.cache import reshape_and_cache as reshape
from npudiff.device.simulator.cache import scatter_nd as nd
from npudiff.device.simulator.cache import scatter_pa as scatter
from npudiff.device.simulator.cache import scatter_update as update
from npudiff.device.simulator.cache import schemas, transfer
from npudiff.device.simulator.cache.prefetch import prefetch, prefetch_meta
from npudiff.device.simulator.library import Operator

_CACHES = ("key_cache", "value_cache")
_CAST = ("input", "dst", "src")
_INDICES = ("device_indices", "host_indices")

OPERATORS = (
    Operator(schemas.RESHAPE_AND_CACHE, reshape.reshape_and_cache, reshape.reshape_and_cache_meta, _CACHES),
    Operator(
        schemas.RESHAPE_AND_CACHE_SISO, reshape.reshape_and_cache_siso, reshape.reshape_and_cache_meta, ("key_cache",)
    ),
    Operator(schemas.SCATTER_PA, scatter.scatter_pa, scatter.scatter_pa_meta, _CACHES),
    Operator(schemas.SCATTER_PA_FUNCTIONAL, scatter.scatter_pa_functional, scatter.scatter_pa_functional_meta, _CACHES),
    Operator(schemas.SCATTER_ND, nd.scatter_nd, nd.scatter_nd_meta),
    Operator(schemas.SCATTER_ND_IN_PLACE, nd.scatter_nd_in_place, nd.scatter_nd_in_place_meta),
    Operator(schemas.SCATTER_UPDATE, update.scatter_update, update.scatter_update_meta),
    Operator(schemas.SCATTER_UPDATE_IN_PLACE, update.scatter_update_in_place, update.scatter_update_in_place_meta),
    Operator(schemas.GATHER_PA, gather.gather_pa, gather.gather_pa_meta, _CACHES),
    Operator(schemas.GATHER_PA_FUNCTIONAL, gather.gather_pa_functional, gather.gather_pa_functional_meta, _CACHES),
    Operator(schemas.FORMAT_CAST, cast.format_cast, cast.format_cast_meta, _CAST),
    Operator(schemas.FORMAT_CAST_TENSOR, cast.format_cast_like, cast.format_cast_meta, _CAST),
    Operator(schemas.FORMAT_CAST_IN_PLACE, cast.format_cast_in_place, cast.format_cast_in_place_meta, _CAST),
    Operator(
        schemas.FORMAT_CAST_IN_PLACE_TENSOR, cast.format_cast_in_place_from, cast.format_cast_in_place_meta, _CAST
    ),
    Operator(schemas.PREFETCH, prefetch, prefetch_meta),
    Operator(
        schemas.TRANSFER_KV, transfer.transfer_kv, transfer.nothing, host=("device_v", *_INDICES),
        host_memory=("host_k", "host_v"),
    ),
    Operator(
        schemas.STATE_TO_DEVICE, transfer.state_to_device, transfer.nothing, host=("src_indices", "dst_indices"),
        host_memory=("src",), pinned=True,
    ),
    Operator(
        schemas.STATES_TO_HOST, transfer.states_to_host, transfer.nothing, host=_INDICES,
        host_memory=("host_states",), pinned=True,
    ),
    Operator(schemas.GET_FORMAT, cast.get_format, cast.get_format, _CAST),
)  # fmt: skip
"""Every operator of the family."""
