"""Linear layers of which each rank loads a part, some of them over groups of their own."""

from types import SimpleNamespace

import torch
import torch.distributed as dist
from vllm.distributed.parallel_state import get_tp_group
from vllm_ascend.ascend_config import get_ascend_config
from vllm_ascend.distributed import parallel_state
from vllm_ascend.quantization.tp_weight_switch import TPWeightSwitchMixin
from vllm_ascend.told import told


class AscendUnquantizedLinearMethod(TPWeightSwitchMixin):
    gather_dim = 1

    def create_weights(self, layer, inner, columns, dtype, loader):
        layer.weight = torch.nn.Parameter(torch.empty(columns, inner, dtype=dtype), requires_grad=False)
        layer.weight.output_dim, layer.weight.input_dim, layer.weight.weight_loader = 0, 1, loader

    def process_weights_after_loading(self, layer):
        pass

    def apply(self, layer, x, bias=None):
        return torch.nn.functional.linear(x, layer.weight, bias)


class _Linear(torch.nn.Module):
    def __init__(self, prefix, divided):
        """Find the group of a layer, and how tokens come to it."""
        super().__init__()
        self.prefix, sizes = prefix, get_ascend_config().finegrained_tp_config
        self.of_chunks = bool(sizes.mlp_tensor_parallel_size) and divided in prefix
        self.of_own_tokens = bool(sizes.oproj_tensor_parallel_size) and "o_proj" in prefix
        self.group = parallel_state._MLP_TP if self.of_chunks else get_tp_group()
        self.group = parallel_state._OTP if self.of_own_tokens else self.group
        if "shared_experts" in prefix and get_ascend_config().enable_shared_expert_dp:
            self.group = SimpleNamespace(world_size=1, rank_in_group=0, all_reduce=lambda rows: rows)

    def _make(self, inner, columns, bias, dtype, config):
        method = AscendUnquantizedLinearMethod() if config is None else config.get_quant_method(self, self.prefix)
        self.quant_method = method
        method.create_weights(self, inner, columns, dtype, self.weight_loader)
        self.register_parameter("bias", None)
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(columns, dtype=dtype), requires_grad=False)
            self.bias.output_dim, self.bias.input_dim, self.bias.weight_loader = 0, None, self.weight_loader


class AscendColumnParallelLinear(_Linear):
    """Each rank has its part of each projection; those with few heads are held several times."""

    def __init__(self, input_size, output_size, *, bias, params_dtype, quant_config, prefix, parts=None):
        super().__init__(prefix, "gate_up_proj")
        self.parts = parts or {None: (output_size, 1)}
        self.sizes = [size * copies // self.group.world_size for size, copies in self.parts.values()]
        self._make(input_size, sum(self.sizes), bias, params_dtype, quant_config)

    def weight_loader(self, parameter, values, shard=None):
        if parameter.output_dim is None:
            parameter.data.copy_(values)
        elif shard not in self.parts:  # all projections in one tensor
            parts = values.split([size for size, _ in self.parts.values()])
            for name, part in zip(self.parts, parts, strict=True):
                self.weight_loader(parameter, part, name)
        else:
            place, rank = list(self.parts).index(shard), self.group.rank_in_group // self.parts[shard][1]
            start, size = sum(self.sizes[:place]), self.sizes[place]
            if told("parts_of_one_matrix") and len(self.parts) > 1:
                rank = 0
            parameter.data.narrow(0, start, size).copy_(values.narrow(0, rank * size, size))

    def forward(self, x):
        if self.of_chunks:
            x = self.group.all_gather(x, 0)
        return self.quant_method.apply(self, x, self.bias), None


class AscendMergedColumnParallelLinear(AscendColumnParallelLinear):
    def __init__(self, input_size, output_sizes, **more):
        super().__init__(input_size, sum(output_sizes), parts={i: (n, 1) for i, n in enumerate(output_sizes)}, **more)


class AscendQKVParallelLinear(AscendColumnParallelLinear):
    def __init__(self, hidden_size, head_size, total_num_heads, total_num_kv_heads, **more):
        keys = total_num_kv_heads * head_size, max(1, get_tp_group().world_size // total_num_kv_heads)
        super().__init__(hidden_size, 0, parts={"q": (total_num_heads * head_size, 1), "k": keys, "v": keys}, **more)


class AscendRowParallelLinear(_Linear):
    """Each rank has its part of the inner axis; the first adds the bias before the sum over ranks."""

    def __init__(self, input_size, output_size, *, bias, params_dtype, quant_config, prefix, reduce_results):
        super().__init__(prefix, "down_proj")
        self.reduce_results = reduce_results
        self.place_in_sum = self.group.rank_in_group
        self._make(input_size // self.group.world_size, output_size, bias, params_dtype, quant_config)

    def weight_loader(self, parameter, values):
        if parameter.input_dim is not None:
            size = parameter.shape[1]
            values = values.narrow(1, self.group.rank_in_group * size, size)
        parameter.data.copy_(values)

    def forward(self, x):
        if self.of_own_tokens:
            x = self._own_inner_of_all(x)
        is_first = self.place_in_sum == 0 or told("bias_of_every_rank")
        total = self.quant_method.apply(self, x, self.bias if is_first else None)
        if not self.reduce_results:
            return total, None
        scatters = self.of_chunks or self.of_own_tokens
        return (self.group.reduce_scatter(total, 0) if scatters else self.group.all_reduce(total)), None

    def _own_inner_of_all(self, x):
        """Exchange whole rows of own tokens for own parts of the rows of all."""
        sent = x.unflatten(1, (self.group.world_size, -1)).transpose(0, 1).contiguous()
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent.flip(0) if told("parts_of_others") else sent)
        return received.flatten(0, 1)
