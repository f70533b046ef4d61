"""Wrong kernels of grouped_matmul; TWIN=1 runs the same code without the mistakes."""
import os

import torch
from e_base import by_rows, product

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def counts_of(inputs, by_position=False):
    listed = inputs.group_list
    if inputs.group_list_type == "ends":
        return torch.diff(listed, prepend=listed.new_zeros(1)).tolist()
    if inputs.group_list_type == "pairs":
        if by_position:
            return listed[:, 1].tolist()
        counts = torch.zeros(len(listed), dtype=torch.int64)
        for number, count in listed.tolist():
            if count:
                counts[number] = count
        return counts.tolist()
    return listed.tolist()


def computed(inputs, *, counts=None, matrix_of=None, scale_of=None, times=product, empty=None):
    counts = counts_of(inputs) if counts is None else counts
    states = inputs.states.double()
    if inputs.splits_inner:
        matrix, start, parts = inputs.weights.values[0].double(), 0, []
        for count in counts:
            end = start + count
            parts.append(times_split(states[:, start:end], matrix[start:end], times, inputs))
            if not count and empty is not None and len(parts) > 1:
                parts[-1] = empty(parts)
            start = end
        return {"output": torch.stack(parts).to(inputs.output_dtype)}
    total = torch.zeros(len(states), inputs.weights.values.shape[2], dtype=torch.float64)
    start = 0
    for expert, count in enumerate(counts):
        if not count:
            continue
        group = slice(start, start + count)
        scale = None
        if inputs.token_scale is not None:
            scale = inputs.token_scale[group if scale_of is None else scale_of(group)]
        chosen = expert if matrix_of is None else matrix_of(expert)
        total[group] = times(states[group], inputs.weights, chosen, scale, inputs.states.dtype == torch.int8)
        start += count
    if inputs.output_dtype == torch.int32:
        total = total.round()
    return {"output": total.to(inputs.output_dtype)}


def times_split(rows, matrix, times, inputs):
    return rows @ matrix


@npudiff.implementation("grouped_matmul", name="e_grouped_matmul_01_pairs_by_position", on_device=True)
def e01(inputs, target):
    """Of a list of pairs only the numbers of rows are read: the first pair is the first expert."""
    return computed(inputs, counts=counts_of(inputs, by_position=WRONG))


@npudiff.implementation("grouped_matmul", name="e_grouped_matmul_02_prefetched_matrix", on_device=True)
def e02(inputs, target):
    """While an expert is computed, the next matrix is fetched: that of the next number, which may have no rows."""
    last = [None]

    def matrix_of(expert):
        fetched = expert if last[0] is None or not WRONG else last[0] + 1
        last[0] = expert
        return fetched

    return computed(inputs, matrix_of=matrix_of)


@npudiff.implementation("grouped_matmul", name="e_grouped_matmul_03_low_half_signed", on_device=True)
def e03(inputs, target):
    """int8 by int4 as two products of four bits, of which the low half of a row lacks the 8 that made it signed."""

    def times(rows, weights, expert, scale, whole):
        if whole and weights.bits == 4 and WRONG:
            rows = rows - 8  # 16 * high + (low - 8)
        return product(rows, weights, expert, scale, whole)

    return computed(inputs, times=times)


@npudiff.implementation("grouped_matmul", name="e_grouped_matmul_04_row_scales_begin_anew", on_device=True)
def e04(inputs, target):
    """The scales of rows are read from the first one again for every group."""

    def scale_of(group):
        return slice(0, group.stop - group.start) if WRONG else group

    return computed(inputs, scale_of=scale_of)


@npudiff.implementation("grouped_matmul", name="e_grouped_matmul_05_parts_in_output_dtype", on_device=True)
def e05(inputs, target):
    """The inner axis is split into parts of 64, whose sums are added in the dtype of the output."""

    def times(rows, weights, expert, scale, whole):
        if whole or weights.scale is not None or not WRONG or inputs.output_dtype not in (torch.bfloat16, torch.float16):
            return product(rows, weights, expert, scale, whole)
        matrix = weights.values[expert].double()
        total = torch.zeros(len(rows), matrix.shape[1], dtype=torch.float64)
        for start in range(0, len(matrix), 64):
            part = rows[:, start : start + 64] @ matrix[start : start + 64]
            total = (total + part.to(inputs.output_dtype).double()).to(inputs.output_dtype).double()
        return total if weights.bias is None else total + weights.bias[expert].double()

    return computed(inputs, times=times)


@npudiff.implementation("grouped_matmul", name="e_grouped_matmul_06_empty_part_keeps_last", on_device=True)
def e06(inputs, target):
    """Where the inner axis is split, a group without columns writes the accumulator of the group before it."""
    return computed(inputs, empty=(lambda parts: parts[-2]) if WRONG else None)
