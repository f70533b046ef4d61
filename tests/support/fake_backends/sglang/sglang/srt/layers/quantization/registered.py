"""Parameters of a layer, with who loads them and along which axes."""

import torch


def _copied(parameter, values):
    parameter.data.copy_(values)


def register(layer, name, *shape, dtype, loader=None, output_dim=None, input_dim=None):
    """Make an empty parameter with a loader."""
    made = torch.nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)
    made.weight_loader, made.output_dim, made.input_dim = loader or _copied, output_dim, input_dim
    layer.register_parameter(name, made)


class LinearMethod:
    """What a scheme does for a layer."""

    def __init__(self, scheme):
        self.scheme = scheme
        self.process_weights_after_loading = scheme.process_weights_after_loading

    def create_weights(self, layer, inner, sizes, **more):
        self.scheme.create_weights(layer, inner, sizes, inner, sum(sizes), **more)

    def apply(self, layer, x, bias=None):
        return self.scheme.apply_weights(layer, x, bias)


class OfWords:
    """Layers whose weights are words of eight integers: how long their axes are is the kernel's."""

    def __init__(self, config):
        self.config, self.kernel = config, config.kernel(config)
        self.process_weights_after_loading = self.kernel.process_weights_after_loading

    def create_weights(self, layer, inner, sizes, *, params_dtype, weight_loader):
        columns, groups = sum(sizes), inner // self.config.group_size
        axes = {"loader": weight_loader, "output_dim": 1, "input_dim": 0}
        rows, words = (inner, columns // 8) if self.config.along_columns else (inner // 8, columns)
        register(layer, "qweight", rows, words, dtype=torch.int32, **axes)
        register(layer, "qzeros", groups, columns // 8, dtype=torch.int32, **axes)
        register(layer, "scales", groups, columns, dtype=params_dtype, **axes)
        if not self.config.along_columns:
            register(layer, "g_idx", inner, dtype=torch.int32, loader=weight_loader, input_dim=0)

    def apply(self, layer, x, bias=None):
        return self.kernel.apply(layer, x, bias)
