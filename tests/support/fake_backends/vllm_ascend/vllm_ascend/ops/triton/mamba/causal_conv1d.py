"""Steps and drafts of layers that have no other way."""

import torch
from vllm_ascend._310p.ops.causal_conv1d import update

HAS_TRITON = False


def causal_conv1d_update_npu(
    x,
    conv_state,
    weight,
    bias=None,
    activation=None,
    conv_state_indices=None,
    num_accepted_tokens=None,
    query_start_loc=None,
    max_query_len=-1,
    validate_data=False,
):
    """A row of each request, or as many as ``query_start_loc`` says."""
    starts = torch.arange(len(x) + 1) if query_start_loc is None else query_start_loc
    return update(x, conv_state, weight, bias, activation, conv_state_indices, starts, num_accepted_tokens)
