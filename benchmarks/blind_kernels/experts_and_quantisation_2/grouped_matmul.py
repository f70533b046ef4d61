"""Wrong kernels of grouped_matmul; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def _counts(inputs, group_list=None):
    given = inputs.group_list if group_list is None else group_list
    if inputs.group_list_type == "ends":
        return torch.diff(given, prepend=given.new_zeros(1)).tolist()
    if inputs.group_list_type == "counts":
        return given.tolist()
    sizes = [0] * len(given)
    for expert, size in given.tolist():
        if size:
            sizes[expert] += size
    return sizes


def _worth(weights, expert, each=None):
    """The scale of each row of a matrix, float64 ``[inner, columns]``."""
    scale = weights.scale[expert].double()
    inner = weights.values.shape[1]
    group = torch.arange(inner, device=scale.device) // (inner // len(scale))
    if each is not None:  # the group of the first row of a tile is that of all
        group = group[torch.arange(inner, device=scale.device) // each * each]
    return scale[group], group


def _product(inputs, rows, expert, tile=None, early_bias=False):
    """Some rows times the matrix of an expert, float64; before it is rounded."""
    weights = inputs.weights
    states = inputs.states[rows]
    matrix = weights.values[expert].double()
    bias = None if weights.bias is None else weights.bias[expert].double()
    int_bias = weights.bias is not None and weights.bias.dtype == torch.int32
    if states.dtype != torch.int8:
        if weights.scale is not None:
            worth, group = _worth(weights, expert, tile)
            if weights.offset is not None:
                matrix = matrix + weights.offset[expert].double()[group]
            matrix = matrix * worth
        result = states.double() @ matrix
        return result if bias is None else result + bias
    if weights.scale is None:
        sums = states.double() @ matrix
        return sums + bias if int_bias else sums
    if weights.scale.shape[1] > 1:
        result = states.double() @ (matrix * _worth(weights, expert, tile)[0])
    else:
        sums = states.double() @ matrix
        result = (sums + bias if int_bias else sums) * weights.scale[expert].double()
    if early_bias and bias is not None and not int_bias:
        result, bias = result + bias, None
    if inputs.token_scale is not None:
        result = result * inputs.token_scale[rows].double().unsqueeze(1)
    return result if bias is None or int_bias else result + bias


def _stored(numbers, dtype):
    return numbers.to(torch.int64).to(dtype) if dtype == torch.int32 else numbers.to(dtype)


def _inner(inputs, counts, stale=False):
    """Groups of the inner axis."""
    rows, columns = len(inputs.states), inputs.weights.values.shape[2]
    parts, start = [], 0
    last = torch.zeros(rows, columns, dtype=torch.float64, device=inputs.states.device)
    for count in counts:
        part = slice(start, start + count)
        if count or not stale:
            last = inputs.states[:, part].double() @ inputs.weights.values[0][part].double()
        parts.append(_stored(last, inputs.output_dtype))
        start += count
    return torch.stack(parts)


def _by_groups(inputs, counts, matrix_of=lambda expert: expert, **mistakes):
    output = torch.zeros(len(inputs.states), inputs.weights.values.shape[2], dtype=inputs.output_dtype,
                         device=inputs.states.device)
    start = 0
    for expert, count in enumerate(counts):
        if count:
            rows = slice(start, start + count)
            output[rows] = _stored(_product(inputs, rows, matrix_of(expert), **mistakes), inputs.output_dtype)
            start += count
    return output


@npudiff.implementation("grouped_matmul", name="d_grouped_matmul_01_whole_tiles_of_rows", on_device=True)
def d01(inputs, target):
    """Tiles of 16 rows are written whole, and groups from the last to the first: the next group's first rows are lost."""
    counts = _counts(inputs)
    if inputs.splits_inner:
        return {"output": _inner(inputs, counts)}
    output = _by_groups(inputs, counts)
    if not WRONG:
        return {"output": output}
    ends = torch.tensor(counts).cumsum(0).tolist()
    for expert in reversed(range(len(counts))):
        if counts[expert]:
            begin = ends[expert] - counts[expert]
            rows = slice(begin, min(begin + -(-counts[expert] // 16) * 16, len(output)))
            output[rows] = _stored(_product(inputs, rows, expert), inputs.output_dtype)
    return {"output": output}


@npudiff.implementation("grouped_matmul", name="d_grouped_matmul_02_matrices_of_groups_that_are_not_empty",
                        on_device=True)
def d02(inputs, target):
    """Empty groups are taken out of the list, and the matrices are counted on along those that are left."""
    counts = _counts(inputs)
    if inputs.splits_inner:
        return {"output": _inner(inputs, counts)}
    if not WRONG or inputs.group_list_type == "pairs":
        return {"output": _by_groups(inputs, counts)}
    return {"output": _by_groups(inputs, [count for count in counts if count])}


@npudiff.implementation("grouped_matmul", name="d_grouped_matmul_03_bias_before_the_scale_of_rows", on_device=True)
def d03(inputs, target):
    """Of int8 rows: a float bias is added where an int32 one may be, so the scale of the row multiplies it."""
    counts = _counts(inputs)
    if inputs.splits_inner:
        return {"output": _inner(inputs, counts)}
    return {"output": _by_groups(inputs, counts, early_bias=WRONG)}


@npudiff.implementation("grouped_matmul", name="d_grouped_matmul_04_empty_part_of_the_inner_axis", on_device=True)
def d04(inputs, target):
    """A group without columns is skipped, and what the accumulator holds of the one before is written for it."""
    counts = _counts(inputs)
    if inputs.splits_inner:
        return {"output": _inner(inputs, counts, stale=WRONG)}
    return {"output": _by_groups(inputs, counts)}


@npudiff.implementation("grouped_matmul", name="d_grouped_matmul_05_scales_of_a_tile", on_device=True)
def d05(inputs, target):
    """Scales and offsets are loaded once for 128 rows of the matrix: smaller groups have those of the first of them."""
    counts = _counts(inputs)
    if inputs.splits_inner:
        return {"output": _inner(inputs, counts)}
    return {"output": _by_groups(inputs, counts, tile=128 if WRONG else None)}


@npudiff.implementation("grouped_matmul", name="d_grouped_matmul_06_groups_of_the_captured_call", on_device=True,
                        stateful=True)
def d06():
    """The groups are read by the host when the graph of a shape is captured, and are the same when it is replayed."""
    captured = {}

    def matmul(inputs, target):
        key = (tuple(inputs.states.shape), inputs.group_list_type, tuple(inputs.weights.values.shape),
               inputs.splits_inner, len(inputs.group_list))
        if key not in captured or not WRONG:
            captured[key] = _counts(inputs)
        counts = captured[key]
        return {"output": _inner(inputs, counts) if inputs.splits_inner else _by_groups(inputs, counts)}

    return matmul
