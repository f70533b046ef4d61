"""Wrong moe_finalize kernels; with TWIN=1 the same without their mistakes."""
import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


def copies_of(inputs):
    rows = inputs.expanded_rows[inputs.src_to_dst_row.clamp(min=0).long()].float()
    return rows.masked_fill((inputs.src_to_dst_row < 0).unsqueeze(2), 0.0)


def total_of(inputs, rows=None, weights=None):
    rows = copies_of(inputs) if rows is None else rows
    weights = inputs.weights if weights is None else weights
    return (rows * weights.float().unsqueeze(2)).sum(dim=1)


def finish(inputs, total, residual="given"):
    residual = inputs.residual if isinstance(residual, str) else residual
    total = total if residual is None else total + residual.float()
    return total.to(inputs.expanded_rows.dtype)


@npudiff.implementation("moe_finalize", name="b_finalize_01_minus_one_is_the_last_row", on_device=True)
def b01(inputs, target):
    """Rows by index."""
    if not WRONG or not len(inputs.expanded_rows):
        return finish(inputs, total_of(inputs))
    return finish(inputs, total_of(inputs, inputs.expanded_rows[inputs.src_to_dst_row.long()].float()))


@npudiff.implementation("moe_finalize", name="b_finalize_02_zero_weight_for_row_0", on_device=True)
def b02(inputs, target):
    """Copies that are left out take row 0, with weight 0."""
    if not WRONG:
        return finish(inputs, total_of(inputs))
    rows = inputs.expanded_rows[inputs.src_to_dst_row.clamp(min=0).long()].float()
    return finish(inputs, total_of(inputs, rows, inputs.weights.masked_fill(inputs.src_to_dst_row < 0, 0.0)))


@npudiff.implementation("moe_finalize", name="b_finalize_03_unrolled_top_k", on_device=True)
def b03(inputs, target):
    """Loops unrolled for 1, 2, 4, 6 and 8 copies."""
    top_k = inputs.weights.shape[1]
    done = max(k for k in (1, 2, 4, 6, 8) if k <= top_k) if WRONG else top_k
    rows, weights = copies_of(inputs)[:, :done], inputs.weights[:, :done]
    return finish(inputs, total_of(inputs, rows, weights))


@npudiff.implementation("moe_finalize", name="b_finalize_04_one_copy_is_a_copy", on_device=True)
def b04(inputs, target):
    """One copy per token needs no sum."""
    if WRONG and inputs.weights.shape[1] == 1:
        return finish(inputs, total_of(inputs), None)
    return finish(inputs, total_of(inputs))


@npudiff.implementation("moe_finalize", name="b_finalize_05_nothing_here_returns", on_device=True)
def b05(inputs, target):
    """A token without copies here is done."""
    result = finish(inputs, total_of(inputs))
    if WRONG:
        result = result.masked_fill((inputs.src_to_dst_row < 0).all(dim=1, keepdim=True), 0.0)
    return result


@npudiff.implementation("moe_finalize", name="b_finalize_06_blocks_in_uint16", on_device=True)
def b06(inputs, target):
    """Rows whose bytes are whole blocks of 32 are copied by block number."""
    rows, size = inputs.expanded_rows, inputs.expanded_rows.element_size()
    width = rows.shape[1]
    if not WRONG or width * size % 32:
        return finish(inputs, total_of(inputs))
    start = inputs.src_to_dst_row.clamp(min=0).long() * (width * size // 32) % 2**16 * (32 // size)
    taken = rows.flatten()[start.unsqueeze(2) + torch.arange(width)].float()
    taken = taken.masked_fill((inputs.src_to_dst_row < 0).unsqueeze(2), 0.0)
    return finish(inputs, total_of(inputs, taken))


@npudiff.implementation("moe_finalize", name="b_finalize_07_residual_of_whole_tiles", on_device=True)
def b07(inputs, target):
    """The residual is added in tiles of 16 rows, or row by row where there are fewer."""
    tokens = len(inputs.weights)
    residual = inputs.residual
    if WRONG and residual is not None and tokens >= 16:
        residual = residual.clone()
        residual[tokens // 16 * 16 :] = 0
    return finish(inputs, total_of(inputs), residual)


@npudiff.implementation("moe_finalize", name="b_finalize_08_sum_in_half", on_device=True)
def b08(inputs, target):
    """Sums of float16 stay in float16."""
    if not WRONG or inputs.expanded_rows.dtype != torch.float16:
        return finish(inputs, total_of(inputs))
    products = copies_of(inputs) * inputs.weights.float().unsqueeze(2)
    total = torch.zeros_like(products[:, 0])
    for k in range(products.shape[1]):
        total = (total + products[:, k]).half().float()
    return finish(inputs, total)


@npudiff.implementation("moe_finalize", name="b_finalize_09_renormalised_here", on_device=True)
def b09(inputs, target):
    """Weights of the copies that are here."""
    weights = inputs.weights.float()
    if WRONG and bool((inputs.src_to_dst_row < 0).any()):
        here = weights.masked_fill(inputs.src_to_dst_row < 0, 0.0).sum(dim=1, keepdim=True)
        weights = weights * weights.sum(dim=1, keepdim=True) / torch.where(here == 0, 1.0, here)
    return finish(inputs, total_of(inputs, weights=weights))
