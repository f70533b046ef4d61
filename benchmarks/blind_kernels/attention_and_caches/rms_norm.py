"""Wrong kernels of rms_norm; TWIN=1 runs the same code without the mistakes."""

import os

import torch

import npudiff

WRONG = os.environ.get("TWIN") != "1"


class Norm:
    """In float32, rounded once; subclasses change one thing."""

    def __init__(self, inputs):
        self.inputs, self.dtype = inputs, inputs.hidden.dtype

    def total(self):
        hidden, residual = self.inputs.hidden, self.inputs.residual
        return hidden.clone() if residual is None else hidden + residual

    def mean(self, wide):
        return wide.pow(2).mean(dim=-1, keepdim=True)

    def rstd(self, wide):
        return torch.rsqrt(self.mean(wide) + self.inputs.epsilon)

    def weight(self):
        return self.inputs.weight.float() + (1.0 if self.inputs.kind == "gemma" else 0.0)

    def output(self, wide, rstd):
        return (wide * rstd * self.weight()).to(self.dtype)

    def run(self):
        total = self.total()
        wide = total.float()
        rstd = self.rstd(wide)
        return {"output": self.output(wide, rstd), "rstd": rstd, "sum": total}


def kernel(name):
    def register(cls):
        def run(inputs, target):
            return cls(inputs).run()

        run.__doc__ = cls.__doc__
        return npudiff.implementation("rms_norm", name=name, on_device=True)(run)

    return register


@kernel("b_rms_norm_01_epsilon_beside_the_root")
class Beside(Norm):
    """Epsilon is added to the root mean square, and not to its square."""

    def rstd(self, wide):
        return 1 / (self.mean(wide).sqrt() + self.inputs.epsilon) if WRONG else super().rstd(wide)


@kernel("b_rms_norm_02_mean_over_the_tile")
class OverTile(Norm):
    """The mean divides by the width of the tile, a power of two, where a row is wider than 2,048."""

    def mean(self, wide):
        columns = wide.shape[-1]
        if WRONG and columns > 2048:
            return wide.pow(2).sum(dim=-1, keepdim=True) / (1 << (columns - 1).bit_length())
        return super().mean(wide)


@kernel("b_rms_norm_03_gemma_weight_rounded")
class Rounded(Norm):
    """The weight of a Gemma norm is rounded after 1 was added, although one rounding is asked for."""

    def weight(self):
        return super().weight().to(self.dtype).float() if WRONG and self.inputs.rounding == "once" else super().weight()


@kernel("b_rms_norm_04_squares_in_half")
class Squares(Norm):
    """Squares of float16 rows are float16, and only their sum is not."""

    def mean(self, wide):
        if WRONG and self.dtype == torch.float16:
            return wide.half().pow(2).float().mean(dim=-1, keepdim=True)
        return super().mean(wide)


@kernel("b_rms_norm_05_one_stride_for_both")
class OneStride(Norm):
    """The residual is addressed with the row stride of the hidden states."""

    def total(self):
        hidden, residual = self.inputs.hidden, self.inputs.residual
        if not WRONG or residual is None or not residual.numel() or hidden.stride(0) == residual.stride(0):
            return super().total()
        rows, columns = residual.shape
        flat = residual.as_strided((residual.untyped_storage().size() // residual.element_size() - residual.storage_offset(),), (1,))
        index = torch.arange(rows)[:, None] * hidden.stride(0) + torch.arange(columns)
        return hidden + flat[index.clamp(max=len(flat) - 1)]


@kernel("b_rms_norm_06_tail_of_columns")
class Tail(Norm):
    """Squares are added up in tiles of 1,024 columns, without the rest of a row of several tiles."""

    def mean(self, wide):
        columns = wide.shape[-1]
        if WRONG and columns > 1024:
            return wide[:, : columns // 1024 * 1024].pow(2).sum(dim=-1, keepdim=True) / columns
        return super().mean(wide)


@kernel("b_rms_norm_07_factor_rounded")
class FactorRounded(Norm):
    """The factor of a row is cast to the dtype of the states, since the product is one of equal dtypes."""

    def output(self, wide, rstd):
        return super().output(wide, rstd.to(self.dtype).float() if WRONG else rstd)


@kernel("b_rms_norm_08_rows_of_65535_programs")
class Programs(Norm):
    """A program for each row, 65,535 at most; rows behind are not written."""

    def output(self, wide, rstd):
        output = super().output(wide, rstd)
        if WRONG:
            output[65535:] = 0
        return output


@kernel("b_rms_norm_09_gemma_fused_without_1")
class WithoutOne(Norm):
    """The fused operator with a residual is plain, and is given a Gemma weight as it is stored."""

    def weight(self):
        if WRONG and self.inputs.residual is not None:
            return self.inputs.weight.float()
        return super().weight()


@kernel("b_rms_norm_10_sum_cut_off")
class CutOff(Norm):
    """The sum is stored by cutting off the lower half of a float32; bfloat16 only."""

    def total(self):
        inputs = self.inputs
        if WRONG and inputs.residual is not None and self.dtype == torch.bfloat16:
            wide = inputs.hidden.float() + inputs.residual.float()
            return (wide.view(torch.int32) & -65536).view(torch.float32).to(torch.bfloat16)
        return super().total()


@kernel("b_rms_norm_11_epsilon_in_half")
class EpsilonInHalf(Norm):
    """Epsilon is a scalar of the dtype of the states, which turns small ones into 0 in float16."""

    def rstd(self, wide):
        if WRONG and self.dtype == torch.float16:
            return torch.rsqrt(self.mean(wide) + float(torch.tensor(self.inputs.epsilon).half()))
        return super().rstd(wide)


@kernel("b_rms_norm_12_float32_through_bfloat16")
class Through16(Norm):
    """What was normalised passes through bfloat16 before the weight, also of float32."""

    def output(self, wide, rstd):
        if WRONG and self.dtype == torch.float32:
            return (wide * rstd).bfloat16().float() * self.weight()
        return super().output(wide, rstd)


@kernel("b_rms_norm_13_residual_not_updated_in_small_batches")
class NotUpdated(Norm):
    """The path of up to 4 rows normalises the sum, and returns the residual as it was."""

    def run(self):
        results = super().run()
        if WRONG and self.inputs.residual is not None and len(self.inputs.hidden) <= 4:
            results["sum"] = self.inputs.residual.clone()
        return results
