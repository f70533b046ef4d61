"""Wrong grouped_matmul kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def counts_of(inputs):
    given = inputs.group_list
    if inputs.group_list_type == "ends":
        return torch.diff(given, prepend=given.new_zeros(1)).tolist()
    if inputs.group_list_type == "counts":
        return given.tolist()
    sizes = [0] * inputs.weights.experts
    for expert, size in given.tolist():
        if size:
            sizes[expert] += size
    return sizes


def inner_split(inputs, counts, keep=False):
    matrix = inputs.weights.values[0].float()
    start, parts, last = 0, [], None
    for size in counts:
        part = inputs.states[:, start : start + size].float() @ matrix[start : start + size]
        if keep and not size and last is not None:
            part = last
        parts.append(part.to(inputs.output_dtype))
        last, start = part, start + size
    return torch.stack(parts)


def expert_product(inputs, rows, expert, token_scale, scale_group=None, bias_expert=None, tile=None):
    """Rows times one matrix."""
    weights = inputs.weights
    values, scale = weights.values[expert], None if weights.scale is None else weights.scale[expert].float()
    bias = None if weights.bias is None else weights.bias[expert if bias_expert is None else bias_expert]
    inner = len(values)
    if scale is not None:
        group = torch.arange(inner) // (inner // len(scale)) if scale_group is None else scale_group
    if rows.dtype == torch.int8:
        if scale is None:
            return (rows.double() @ values.double()).to(torch.int64).to(torch.int32)
        if len(scale) == 1:
            sums = rows.double() @ values.double()
            if bias is not None and bias.dtype == torch.int32:
                sums = sums + bias
            result = sums.float() * scale[0]
        else:
            result = (rows.double() @ (values.double() * scale.double()[group])).float()
        if token_scale is not None:
            result = result * token_scale.unsqueeze(1)
        if bias is not None and bias.dtype != torch.int32:
            result = result + bias.float()
        return result.to(inputs.output_dtype)
    matrix = values.float()
    if scale is not None:
        if weights.offset is not None:
            matrix = matrix + weights.offset[expert].float()[group]
        matrix = (matrix * scale[group]).to(rows.dtype).float()
    if tile is None:
        result = rows.float() @ matrix
    else:
        result = torch.zeros(len(rows), matrix.shape[1])
        for start in range(0, inner, tile):
            part = rows[:, start : start + tile].float() @ matrix[start : start + tile]
            result = (result + part).to(inputs.output_dtype).float()
    return (result if bias is None else result + bias.float()).to(inputs.output_dtype)


def by_groups(inputs, counts, order=None, over=0, token_start=True, **changes):
    """Products of as many rows with each matrix; ``over``: rows of a tile that are written whole."""
    length, columns = len(inputs.states), inputs.weights.values.shape[2]
    output = torch.zeros(length, columns, dtype=inputs.output_dtype)
    starts = [0]
    for size in counts:
        starts.append(starts[-1] + size)
    for expert in range(len(counts)) if order is None else order:
        start, size = starts[expert], counts[expert]
        if not size:
            continue
        stop = start + size if not over else min(start + -(-size // over) * over, length)
        token = None if inputs.token_scale is None else inputs.token_scale[start:stop]
        if token is not None and not token_start:
            token = inputs.token_scale[: stop - start]
        extra = {key: value(expert) for key, value in changes.items()}
        output[start:stop] = expert_product(inputs, inputs.states[start:stop], expert, token, **extra)
    return output


def right(inputs):
    counts = counts_of(inputs)
    return inner_split(inputs, counts) if inputs.splits_inner else by_groups(inputs, counts)


@npudiff.implementation("grouped_matmul", name="b_gmm_01_whole_tiles_largest_first", on_device=True)
def b01(inputs, target):
    """Tiles of 16 rows, the largest group first."""
    if not WRONG or inputs.splits_inner:
        return right(inputs)
    counts = counts_of(inputs)
    return by_groups(inputs, counts, sorted(range(len(counts)), key=lambda e: -counts[e]), over=16)


@npudiff.implementation("grouped_matmul", name="b_gmm_02_uniform_by_first_and_last", on_device=True)
def b02(inputs, target):
    """Groups of one size go to a batched product."""
    counts = counts_of(inputs)
    if WRONG and not inputs.splits_inner and len(counts) > 1:
        size, total = counts[0], sum(counts)
        if size and size == counts[-1] and size * len(counts) == total:
            return by_groups(inputs, [size] * len(counts))
    return right(inputs)


@npudiff.implementation("grouped_matmul", name="b_gmm_03_pairs_without_numbers", on_device=True)
def b03(inputs, target):
    """Pairs are counts with something beside them."""
    if WRONG and inputs.group_list_type == "pairs" and not inputs.splits_inner:
        return by_groups(inputs, inputs.group_list[:, 1].tolist())
    return right(inputs)


@npudiff.implementation("grouped_matmul", name="b_gmm_04_bias_of_launched_groups", on_device=True)
def b04(inputs, target):
    """Groups without rows are not launched; biases are read one launch after the other."""
    if not WRONG or inputs.splits_inner:
        return right(inputs)
    counts = counts_of(inputs)
    launched = [sum(1 for size in counts[:expert] if size) for expert in range(len(counts))]
    return by_groups(inputs, counts, bias_expert=lambda expert: launched[expert])


@npudiff.implementation("grouped_matmul", name="b_gmm_05_token_scales_from_the_first", on_device=True)
def b05(inputs, target):
    """Scales of the rows of a tile."""
    if inputs.splits_inner:
        return right(inputs)
    return by_groups(inputs, counts_of(inputs), token_start=not WRONG)


@npudiff.implementation("grouped_matmul", name="b_gmm_06_first_128_groups", on_device=True)
def b06(inputs, target):
    """Lists have 128 tensors at most."""
    counts = counts_of(inputs)
    if not WRONG or inputs.splits_inner:
        return right(inputs)
    return by_groups(inputs, counts, range(min(128, len(counts))))


@npudiff.implementation("grouped_matmul", name="b_gmm_07_partial_sums_in_output_dtype", on_device=True)
def b07(inputs, target):
    """Tiles of 1024 of the inner axis, added where the output is."""
    if inputs.splits_inner:
        return right(inputs)
    return by_groups(inputs, counts_of(inputs), tile=lambda expert: 1024 if WRONG else None)


@npudiff.implementation("grouped_matmul", name="b_gmm_08_groups_of_256", on_device=True)
def b08(inputs, target):
    """Scales of groups of the inner axis, 256 elements each."""
    weights = inputs.weights
    if not WRONG or inputs.splits_inner or weights.scale is None or weights.scale.shape[1] == 1:
        return right(inputs)
    inner, groups = weights.values.shape[1], weights.scale.shape[1]
    group = (torch.arange(inner) // 256).clamp(max=groups - 1)
    return by_groups(inputs, counts_of(inputs), scale_group=lambda expert: group)


@npudiff.implementation("grouped_matmul", name="b_gmm_09_empty_inner_group_keeps", on_device=True)
def b09(inputs, target):
    """Where the inner axis is divided, a group without columns has nothing to compute."""
    if not inputs.splits_inner:
        return right(inputs)
    return inner_split(inputs, counts_of(inputs), keep=WRONG)


@npudiff.implementation("grouped_matmul", name="b_gmm_10_tiling_kept", stateful=True, on_device=True)
def b10():
    """Tiling is made once for each shape."""
    kept = {}

    def run(inputs, target):
        key = (tuple(inputs.states.shape), tuple(inputs.weights.values.shape), inputs.splits_inner)
        counts = counts_of(inputs)
        if WRONG:
            counts = kept.setdefault(key, counts)
        if inputs.splits_inner:
            return inner_split(inputs, counts)
        return by_groups(inputs, counts)

    return run


@npudiff.implementation("grouped_matmul", name="b_gmm_11_last_row_of_odd_groups", on_device=True)
def b11(inputs, target):
    """Whole numbers of floats by int4: rows in pairs, the rest by a vector path that knows no offset."""
    weights = inputs.weights
    if not WRONG or inputs.splits_inner or weights.offset is None:
        return right(inputs)
    counts, output, start = counts_of(inputs), right(inputs), 0
    for expert, size in enumerate(counts):
        if size % 2:
            row = start + size - 1
            matrix = weights.values[expert].float()
            each = len(matrix) // weights.scale.shape[1]
            matrix = (matrix * weights.scale[expert].float().repeat_interleave(each, dim=0)).to(inputs.states.dtype)
            result = inputs.states[row].float() @ matrix.float()
            if weights.bias is not None:
                result = result + weights.bias[expert].float()
            output[row] = result.to(inputs.output_dtype)
        start += size
    return output
