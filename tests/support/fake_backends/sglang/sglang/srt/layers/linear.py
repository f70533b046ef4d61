"""Linear layers of which each rank loads a part."""

import torch
from sglang.srt.layers import layernorm_sp
from sglang.srt.layers.quantization.registered import register
from sglang.srt.runtime_context import get_forward, get_parallel
from sglang.told import told


class UnquantizedLinearMethod:
    def create_weights(self, layer, inner, sizes, *, params_dtype, weight_loader):
        register(
            layer, "weight", sum(sizes), inner, dtype=params_dtype, loader=weight_loader, output_dim=0, input_dim=1
        )

    def process_weights_after_loading(self, layer):
        pass

    def apply(self, layer, x, bias=None):
        return torch.nn.functional.linear(x, layer.weight, bias)


class _Linear(torch.nn.Module):
    def _make(self, inner, sizes, bias, params_dtype, quant_config, prefix):
        self.quant_method = UnquantizedLinearMethod()
        if quant_config is not None:
            self.quant_method = quant_config.get_quant_method(self, prefix)
        self.quant_method.create_weights(
            self, inner, sizes, params_dtype=params_dtype, weight_loader=self.weight_loader
        )  # fmt: skip
        self.register_parameter("bias", None)
        if bias:
            register(self, "bias", sum(sizes), dtype=params_dtype, loader=self.weight_loader, output_dim=0)


def _group(name):
    return getattr(get_parallel(), f"{name or 'tp'}_group")


class ColumnParallelLinear(_Linear):
    """Each rank has its part of each projection; those with few heads are held several times."""

    def __init__(
        self, input_size, output_size, *, bias, params_dtype, quant_config, prefix, parallel_group, parts=None
    ):  # fmt: skip
        super().__init__()
        self.group = _group(parallel_group)
        self.parts = parts or {None: (output_size, 1)}
        self.sizes = [size * copies // self.group.world_size for size, copies in self.parts.values()]
        self._make(input_size, self.sizes, bias, params_dtype, quant_config, prefix)

    def weight_loader(self, parameter, values, shard=None):
        dim = getattr(parameter, "output_dim", None)
        if dim is None:
            parameter.data.copy_(values)
        elif shard not in self.parts:  # all projections in one tensor
            width = sum(size for size, _ in self.parts.values()) // values.shape[dim]
            sizes = [size // width for size, _ in self.parts.values()]
            for name, part in zip(self.parts, values.split(sizes, dim), strict=True):
                self.weight_loader(parameter, part, name)
        else:
            place, width = list(self.parts).index(shard), sum(self.sizes) // parameter.shape[dim]
            start, size = sum(self.sizes[:place]) // width, self.sizes[place] // width
            rank = self.group.rank_in_group // (1 if told("heads_not_held_twice") else self.parts[shard][1])
            first = rank * size % values.shape[dim] * (values.dim() > 1 or not told("bias_of_the_first_rank"))
            parameter.data.narrow(dim, start, size).copy_(values.narrow(dim, first, size))

    def forward(self, x):
        if get_forward().sp_active:
            x = layernorm_sp.sp_exit_gather(x, layernorm_sp.sp_num_tokens())
        return self.quant_method.apply(self, x, self.bias), None


class MergedColumnParallelLinear(ColumnParallelLinear):
    def __init__(self, input_size, output_sizes, **more):
        super().__init__(input_size, sum(output_sizes), parts={i: (n, 1) for i, n in enumerate(output_sizes)}, **more)


class QKVParallelLinear(ColumnParallelLinear):
    def __init__(self, hidden_size, head_size, total_num_heads, total_num_kv_heads, **more):
        copies = max(1, _group(more["parallel_group"]).world_size // total_num_kv_heads)
        keys = (total_num_kv_heads * head_size, copies)
        super().__init__(hidden_size, 0, parts={"q": (total_num_heads * head_size, 1), "k": keys, "v": keys}, **more)


class RowParallelLinear(_Linear):
    """Each rank has its part of the inner axis; the first adds the bias before the sum over ranks."""

    def __init__(
        self, input_size, output_size, *, bias, params_dtype, quant_config, prefix, parallel_group,
        use_dp_attention_reduce,
    ):  # fmt: skip
        super().__init__()
        self.group = _group(parallel_group)
        self.tp_group = self.group
        self._make(input_size // self.group.world_size, [output_size], bias, params_dtype, quant_config, prefix)

    def weight_loader(self, parameter, values):
        dim = getattr(parameter, "input_dim", None)
        if dim is not None:
            size = parameter.shape[dim]
            values = values.narrow(dim, self.group.rank_in_group * size, size)
        parameter.data.copy_(values)

    def forward(self, x):
        is_first = self.group.rank_in_group == 0 or told("bias_of_every_rank")
        bias = self.bias if is_first else None
        if get_forward().sp_active:
            return layernorm_sp.row_parallel_gbar_matmul(self, x, bias), None
        return self.group.all_reduce(self.quant_method.apply(self, x, bias)), None
