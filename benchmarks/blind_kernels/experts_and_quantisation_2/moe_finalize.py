"""Wrong kernels of moe_finalize; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def _rows(inputs, places=None):
    """Rows of each token's copies, float64 ``[tokens, top_k, width]``; zeros for those that are left out."""
    places = inputs.src_to_dst_row if places is None else places
    missing = (places < 0).unsqueeze(2)
    width = inputs.expanded_rows.shape[1]
    if not len(inputs.expanded_rows):
        return torch.zeros(*places.shape, width, dtype=torch.float64, device=places.device)
    return inputs.expanded_rows[places.clamp(min=0).long()].double().masked_fill(missing, 0.0)


def _sum(inputs, rows):
    total = (rows * inputs.weights.double().unsqueeze(2)).sum(dim=1)
    return total if inputs.residual is None else total + inputs.residual.double()


def _truncated(numbers, dtype):
    """Cast towards zero."""
    near = numbers.to(dtype)
    below = torch.nextafter(near, torch.zeros_like(near))
    return torch.where(near.double().abs() > numbers.abs(), below, near)


@npudiff.implementation("moe_finalize", name="d_moe_finalize_01_casts_truncate", on_device=True)
def d01(inputs, target):
    """Products and sums are cast to the dtype of the rows towards zero, and not to the nearest."""
    dtype = inputs.expanded_rows.dtype
    rows = _rows(inputs)
    if not WRONG:
        return {"output": _sum(inputs, rows).to(dtype)}
    products = _truncated(rows * inputs.weights.double().unsqueeze(2), dtype).double()
    total = _truncated(products.sum(dim=1), dtype)
    if inputs.residual is not None:
        total = _truncated(total.double() + inputs.residual.double(), dtype)
    return {"output": total}


@npudiff.implementation("moe_finalize", name="d_moe_finalize_02_adds_to_the_residual", on_device=True)
def d02(inputs, target):
    """The output begins as the residual, and each product is added to it there, in the dtype of the rows."""
    dtype = inputs.expanded_rows.dtype
    rows = _rows(inputs)
    if not WRONG or inputs.residual is None:
        return {"output": _sum(inputs, rows).to(dtype)}
    total = inputs.residual.clone()
    for choice in range(rows.shape[1]):
        total = (total.double() + rows[:, choice] * inputs.weights[:, choice].double().unsqueeze(1)).to(dtype)
    return {"output": total}


@npudiff.implementation("moe_finalize", name="d_moe_finalize_03_ends_at_the_first_that_is_left_out", on_device=True)
def d03(inputs, target):
    """The loop over a token's copies ends at the first that is left out, as if those stood at the end."""
    places = inputs.src_to_dst_row
    if WRONG:
        ended = (places < 0).cumsum(dim=1) > 0
        places = places.masked_fill(ended, -1)
    return {"output": _sum(inputs, _rows(inputs, places)).to(inputs.expanded_rows.dtype)}


@npudiff.implementation("moe_finalize", name="d_moe_finalize_04_top_1_is_copied", on_device=True)
def d04(inputs, target):
    """With one expert for each token, rows are moved to their tokens as they are, without their weights."""
    rows = _rows(inputs)
    if WRONG and rows.shape[1] == 1:
        total = rows[:, 0]
        total = total if inputs.residual is None else total + inputs.residual.double()
    else:
        total = _sum(inputs, rows)
    return {"output": total.to(inputs.expanded_rows.dtype)}


@npudiff.implementation("moe_finalize", name="d_moe_finalize_05_offset_of_16_bits", on_device=True)
def d05(inputs, target):
    """The offset of a row is given to the copy in blocks of 32 bytes as a number of 16 bits, and wraps beyond 2 MB."""
    places = inputs.src_to_dst_row
    width = inputs.expanded_rows.shape[1]
    size = width * inputs.expanded_rows.element_size()
    if not WRONG or size % 32:  # rows that are not whole blocks take another path
        return {"output": _sum(inputs, _rows(inputs)).to(inputs.expanded_rows.dtype)}
    blocks, per_block = size // 32, 32 // inputs.expanded_rows.element_size()
    begin = (places.clamp(min=0).long() * blocks) % 2**16 * per_block
    flat = inputs.expanded_rows.contiguous().flatten()
    columns = torch.arange(width, device=flat.device)
    rows = flat[begin.unsqueeze(2) + columns].double().masked_fill((places < 0).unsqueeze(2), 0.0)
    return {"output": _sum(inputs, rows).to(inputs.expanded_rows.dtype)}


@npudiff.implementation("moe_finalize", name="d_moe_finalize_06_adds_to_the_last_result", on_device=True, stateful=True)
def d06():
    """Products are added atomically to an output that is cleared when it is made, and kept for the same shape."""
    buffers = {}

    def finalize(inputs, target):
        rows = _rows(inputs)
        total = (rows * inputs.weights.double().unsqueeze(2)).sum(dim=1)
        shape = tuple(total.shape)
        if shape not in buffers or not WRONG:
            buffers[shape] = torch.zeros_like(total)
        buffers[shape] += total
        total = buffers[shape]
        total = total if inputs.residual is None else total + inputs.residual.double()
        return {"output": total.to(inputs.expanded_rows.dtype)}

    return finalize
