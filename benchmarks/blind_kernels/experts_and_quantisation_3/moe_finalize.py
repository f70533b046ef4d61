"""Wrong kernels of moe_finalize; TWIN=1 runs the same code without the mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def products(inputs, places=None):
    """float64 ``[tokens, top_k, width]``, zeros for what is left out."""
    places = (inputs.src_to_dst_row if places is None else places).long()
    here = places >= 0
    rows = torch.zeros(*places.shape, inputs.expanded_rows.shape[1], dtype=torch.float64)
    rows[here] = inputs.expanded_rows[places[here]].double()
    return rows * inputs.weights.double().masked_fill(~here, 0.0).unsqueeze(2)


def stored(inputs, total, residuals=1):
    if inputs.residual is not None:
        total = total + residuals * inputs.residual.double()
    return {"output": total.to(inputs.expanded_rows.dtype)}


@npudiff.implementation("moe_finalize", name="e_moe_finalize_01_zero_times_last_row", on_device=True)
def e01(inputs, target):
    """A copy that is left out loads the last row of the buffer and multiplies it by 0: what lies there may be NaN."""
    total = products(inputs).sum(dim=1)
    missing = inputs.src_to_dst_row < 0
    if WRONG and bool(missing.any()) and len(inputs.expanded_rows):
        last = inputs.expanded_rows[-1].double() * 0.0
        total[missing.any(dim=1)] += last
    return stored(inputs, total)


@npudiff.implementation("moe_finalize", name="e_moe_finalize_02_residual_per_pass", on_device=True)
def e02(inputs, target):
    """Copies are added four at a time, and each pass begins with the residual."""
    passes = max(1, -(-inputs.weights.shape[1] // 4))
    return stored(inputs, products(inputs).sum(dim=1), passes if WRONG else 1)


@npudiff.implementation("moe_finalize", name="e_moe_finalize_03_sum_in_rows_dtype", on_device=True)
def e03(inputs, target):
    """The accumulator has the dtype of the rows, and each of the sums is rounded to it."""
    terms, dtype = products(inputs), inputs.expanded_rows.dtype
    total = torch.zeros_like(terms[:, 0]) if terms.shape[1] else terms.sum(dim=1)
    for choice in range(terms.shape[1]):
        total = total + terms[:, choice]
        if WRONG and dtype != torch.float32:
            total = total.to(dtype).double()
    return stored(inputs, total)


@npudiff.implementation("moe_finalize", name="e_moe_finalize_04_places_by_column", on_device=True)
def e04(inputs, target):
    """Places are taken as column-major, as the older routing returns them."""
    tokens, top_k = inputs.src_to_dst_row.shape
    places = inputs.src_to_dst_row
    if WRONG:
        places = places.contiguous().view(top_k, tokens).t()
    return stored(inputs, products(inputs, places).sum(dim=1))


@npudiff.implementation("moe_finalize", name="e_moe_finalize_05_last_block_twice", on_device=True)
def e05(inputs, target):
    """The last block of 16 columns is moved back to be whole, and added to what is there: its overlap counts twice."""
    total = products(inputs).sum(dim=1)
    width = total.shape[1]
    if WRONG and width > 16 and width % 16:
        total[:, width - 16 : width // 16 * 16] *= 2
    return stored(inputs, total)


@npudiff.implementation("moe_finalize", name="e_moe_finalize_06_first_place_decides", on_device=True)
def e06(inputs, target):
    """A token whose first copy is left out is taken for padding, and none of its copies is added."""
    total = products(inputs).sum(dim=1)
    if WRONG and inputs.src_to_dst_row.shape[1]:
        total[inputs.src_to_dst_row[:, 0] < 0] = 0.0
    return stored(inputs, total)
