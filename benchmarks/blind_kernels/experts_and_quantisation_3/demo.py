"""Proves of every kernel that it is wrong beyond the bound with its mistake, and right without it."""
import contextlib
import importlib.util
import os
import pathlib
import sys

import torch

from npudiff.judge.compare import compare
from npudiff.model.component import Subject
from npudiff.model.implementation import Implementation, Target
from npudiff.reference.dynamic_quant import DynamicQuantInputs
from npudiff.reference.expert_weights import ExpertWeights
from npudiff.reference.format_cast import FormatCastInputs
from npudiff.reference.grouped_matmul import GroupedMatmulInputs
from npudiff.reference.int4_pack import Int4PackInputs
from npudiff.reference.moe_experts import Experts, Gate, MoeExpertsInputs
from npudiff.reference.moe_finalize import MoeFinalizeInputs
from npudiff.reference.moe_gating import MoeGatingInputs
from npudiff.reference.moe_routing import MoeRoutingInputs
from npudiff.reference.padded_tokens import PaddedTokensInputs
from npudiff.reference.quant_matmul import QuantMatmulInputs
from npudiff.reference.scale_pack import ScalePackInputs
from npudiff.reference.swiglu import Activation, SwigluInputs
from npudiff.reference.swiglu_quant import SwigluQuantInputs
from npudiff.reference.weight_quant_matmul import WeightQuantMatmulInputs
from npudiff.run.discovery import load_component

torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
BF16, F16, F32, I8, I32 = torch.bfloat16, torch.float16, torch.float32, torch.int8, torch.int32
TARGET = Target("sim", "cpu", "none", contextlib.nullcontext)
G = torch.Generator().manual_seed(5)


def normal(*shape, dtype=F32, size=1.0):
    return (torch.randn(*shape, generator=G) * size).to(dtype)


def whole(*shape, low=-128, high=128, dtype=I8):
    return torch.randint(low, high, shape, generator=G).to(dtype)


def positive(*shape, dtype=F32, size=1.0):
    return ((torch.rand(*shape, generator=G) + 0.1) * size).to(dtype)


def picks(tokens, top_k, experts):
    return torch.stack([torch.randperm(experts, generator=G)[:top_k] for _ in range(tokens)]).to(I32)


def long(*numbers):
    return torch.tensor(numbers, dtype=torch.int64)


def gating():
    tied = normal(3, 8)
    tied[:, 3] = tied[:, 5] = 4.0
    return {
        1: MoeGatingInputs(normal(4, 8), normal(8), 2),
        2: MoeGatingInputs(normal(4, 16), None, 2, groups=4, kept_groups=2, group_score="largest"),
        3: MoeGatingInputs(normal(4, 16), torch.full((16,), -2.0), 3, "sigmoid", groups=4, kept_groups=2),
        4: MoeGatingInputs(normal(4, 16) - 25, None, 3, "sigmoid", renormalise=True),
        5: MoeGatingInputs(tied, None, 3, "sigmoid", renormalise=True),
        6: MoeGatingInputs(torch.linspace(-3, 3, 160).repeat(2, 1).contiguous() + 0.01 * normal(2, 160), None, 4),
        7: MoeGatingInputs(normal(4, 8, dtype=BF16), None, 2, renormalise=True, scaling=2.5),
    }


def routing():
    states = normal(6, 20, dtype=BF16)
    experts = picks(6, 3, 8)
    padded = experts.clone()
    padded[4:] = -1
    many = torch.zeros(33000, 1, dtype=I32)
    return {
        1: MoeRoutingInputs(normal(33000, 1, dtype=BF16), many, 2, 0, 2),
        2: MoeRoutingInputs(normal(4, 5, dtype=F16), torch.tensor([[0, 1], [1, 0], [0, 2], [2, 1]], dtype=I32), 3, 0, 3),
        3: MoeRoutingInputs(states, padded, 8, 0, 4),
        4: MoeRoutingInputs(states, experts, 8, 3, 8, "smoothed", positive(5, 20)),
        5: MoeRoutingInputs(states, experts, 8, 0, 8, "one scale", torch.tensor([100.0]), torch.tensor([3.0])),
        6: MoeRoutingInputs(states, experts, 8, 0, 5, "with scales", positive(6)),
    }


def finalizing():
    rows, places = normal(12, 20, dtype=BF16), torch.randperm(12, generator=G).view(4, 3).to(I32)
    nobodys, missing = rows.clone(), places.clone()
    nobodys[-1] = torch.nan
    missing[missing == 11] = -1
    first = places.clone()
    first[1, 0] = -1
    weights = positive(4, 3, dtype=BF16)
    swamped = torch.full((16, 4), 0.9, dtype=BF16)
    swamped[0] = 256.0
    return {
        1: MoeFinalizeInputs(nobodys, missing, weights, None),
        2: MoeFinalizeInputs(normal(12, 20, dtype=F16), torch.arange(12).view(2, 6).to(I32), positive(2, 6, dtype=F16),
                             normal(2, 20, dtype=F16)),
        3: MoeFinalizeInputs(swamped, torch.arange(16).view(1, 16).to(I32), torch.ones(1, 16, dtype=BF16), None),
        4: MoeFinalizeInputs(rows, places, weights, None),
        5: MoeFinalizeInputs(rows, places, weights, normal(4, 20, dtype=BF16)),
        6: MoeFinalizeInputs(rows, first, weights, None),
    }  # fmt: skip


def matrices(experts, inner, columns, bits=16):
    if bits == 16:
        return ExpertWeights(normal(experts, inner, columns, dtype=BF16, size=inner**-0.5))
    most = 2 ** (bits - 1)
    values = whole(experts, inner, columns, low=-most, high=most)
    return ExpertWeights(values, bits, positive(experts, 1, columns, size=1 / most / inner**0.5))


def experts_of(count, bits=16, gate=None, hidden=32, width=32):
    return Experts(matrices(count, hidden, 2 * width, bits), matrices(count, width, hidden, bits), gate or Gate())


def mixture():
    states, weights, here = normal(6, 32, dtype=BF16), positive(6, 2, dtype=BF16), torch.arange(4)
    twice = picks(6, 2, 4)
    twice[2] = 1
    limited = Gate(Activation.SWIGLUSTEP, 0.2)
    uneven = states * torch.tensor([1.0, 30.0, 0.05, 1.0, 0.1, 20.0], dtype=BF16).unsqueeze(1)
    return {
        1: MoeExpertsInputs(states, twice, weights, here, experts_of(4)),
        2: MoeExpertsInputs(states, picks(6, 2, 8), weights, long(1, 2, 5, 7), experts_of(4)),
        3: MoeExpertsInputs(states, picks(6, 2, 4), weights, here, experts_of(4, gate=limited), experts_of(1)),
        4: MoeExpertsInputs(uneven, picks(6, 2, 4), weights, here, experts_of(4, 8)),
        5: MoeExpertsInputs(states, picks(6, 2, 4), weights * 0.5, here, experts_of(4)),
    }


def grouped():
    states = normal(9, 32, dtype=BF16)
    int_states = whole(9, 32)
    fours = ExpertWeights(whole(3, 32, 8, low=-8, high=8), 4, positive(3, 1, 8, size=0.01))
    sparse = long(3, 0, 5)
    wide = matrices(2, 512, 8)
    return {
        1: GroupedMatmulInputs(states, matrices(4, 32, 8), torch.tensor([[1, 4], [3, 3], [0, 0], [0, 0]]), "pairs", None, BF16),
        2: GroupedMatmulInputs(states, matrices(3, 32, 8), sparse, "counts", None, BF16),
        3: GroupedMatmulInputs(int_states, fours, sparse, "counts", positive(9, size=0.01), BF16),
        4: GroupedMatmulInputs(int_states, matrices(3, 32, 8, 8), long(2, 5, 9), "ends", positive(9, size=0.01), F16),
        5: GroupedMatmulInputs(normal(6, 512, dtype=BF16), wide, long(3, 3), "counts", None, BF16),
        6: GroupedMatmulInputs(normal(5, 40, dtype=BF16), matrices(1, 40, 8), long(16, 0, 24), "counts", None, BF16, True),
    }  # fmt: skip


def dynamic():
    late = normal(3, 100, dtype=BF16)
    late[:, 90] = 9.0
    negative = normal(3, 64, dtype=BF16)
    negative[:, 5] = -6.0
    ends = torch.tensor([2, 2, 6], dtype=I32)
    return {
        1: DynamicQuantInputs(normal(6, 32, dtype=BF16), positive(3, 32, dtype=BF16), ends, 8),
        2: DynamicQuantInputs(negative, None, None, 4),
        3: DynamicQuantInputs(late, None, None, 8),
        4: DynamicQuantInputs(normal(3, 32, dtype=F16, size=1e-6), None, None, 8),
        5: DynamicQuantInputs(normal(6, 128, dtype=BF16), positive(1, 128, dtype=BF16), None, 8),
        6: DynamicQuantInputs(normal(65537, 4, dtype=BF16), None, None, 8),
    }


def quantised():
    large = torch.full((2, 1300), 127, dtype=I8)
    large[0, 3] = 126
    x, weight, scale = whole(5, 64), whole(64, 8), positive(8, size=0.01)
    return {
        1: QuantMatmulInputs(large, torch.full((1300, 3), 127, dtype=I8), torch.ones(1), None, None, None, I32),
        2: QuantMatmulInputs(x, weight, positive(8, size=0.005), None, torch.tensor([-90.0]), None, I8),
        3: QuantMatmulInputs(x, weight, scale, positive(5, size=0.1), None, normal(8), BF16),
        4: QuantMatmulInputs(whole(8, 64), weight, scale, positive(8, size=0.1), None, None, F16),
        5: QuantMatmulInputs(whole(5, 75), whole(75, 8), scale, positive(5, size=0.01), None, whole(8, dtype=I32), BF16),
    }


def weight_quantised():
    x = normal(4, 96, dtype=BF16)
    return {
        1: WeightQuantMatmulInputs(x, whole(96, 8, low=-8, high=8), positive(8, dtype=BF16, size=0.01),
                                   normal(8, dtype=BF16, size=4.0), normal(8), 0, 4),
        2: WeightQuantMatmulInputs(x, whole(96, 8), positive(2, 8, dtype=BF16, size=0.01), None, None, 64),
        3: WeightQuantMatmulInputs(x, whole(96, 8, low=-8, high=8), positive(3, 8, dtype=BF16, size=0.01), None, None, 32, 4),
        4: WeightQuantMatmulInputs(x.to(F16), whole(96, 8), positive(1, dtype=F16, size=0.01),
                                   torch.full((1,), 64.0, dtype=F16), None),
    }  # fmt: skip


def gated():
    states = normal(3, 40, dtype=BF16, size=3.0)
    return {
        1: SwigluInputs(states, Activation.SWIGLU_OAI, 1.0, None),
        2: SwigluInputs(states, Activation.SILU, 0.5, None, shared=True),
        3: SwigluInputs(torch.tensor([[100.0, 1.0, 2.0, 3.0]]), Activation.SILU, None, None),
        4: SwigluInputs(states, Activation.SILU, None, None),
    }


def activated():
    states = whole(6, 24, low=-30000, high=30000, dtype=I32)
    rows = positive(6, size=0.01)
    far = whole(6, 24, low=-400000, high=400000, dtype=I32)
    numbers = normal(6, 24, dtype=BF16)
    return {
        1: SwigluQuantInputs(states, positive(3, 24, size=0.01), rows, None, None, long(2, 0, 3)),
        2: SwigluQuantInputs(states, positive(1, 24, size=0.01), rows, None, None, None, gates="right"),
        3: SwigluQuantInputs(numbers, None, None, None, positive(1, 12, size=3.0), None),
        4: SwigluQuantInputs(far, positive(1, 24, size=0.001), rows, None, None, None, dtype=F16),
    }


def packing():
    three = whole(2, 3, 16, low=0, high=16, dtype=I32)
    again = whole(2, 3, 16, low=0, high=16, dtype=I32)
    return {
        1: Int4PackInputs(whole(3, 16, low=0, high=256, dtype=I32), "two's complement"),
        2: [Int4PackInputs(three, "offset binary"), Int4PackInputs(again, "offset binary")],
        3: Int4PackInputs(three, "offset binary"),
    }


def scales():
    return {
        1: ScalePackInputs(positive(6), torch.tensor([0.7, -0.6, 1.5, 300.0, -300.0, 2.2]), "fixpipe"),
        2: ScalePackInputs(torch.tensor([0.5, -0.25]), None, "bits"),
        3: ScalePackInputs(torch.tensor([1.9999, 0.7]), None, "fixpipe", 1),
    }


def casts():
    return {
        1: FormatCastInputs(normal(20, 20)),
        2: FormatCastInputs(normal(3, 20, 20, dtype=BF16)),
        3: [FormatCastInputs(normal(32, 32, dtype=BF16)), FormatCastInputs(normal(20, 20, dtype=BF16))],
    }


def padding():
    states, weights = normal(8, 6, dtype=BF16), positive(8, 2, dtype=BF16)
    experts, factors = picks(8, 2, 4), torch.tensor([1.0, 2.0, 0.5, 4.0], dtype=BF16)
    poison, poisoned = weights.clone(), states.clone()
    poison[6:], poisoned[6:] = torch.nan, torch.nan
    return {
        1: PaddedTokensInputs(poisoned, experts, poison, factors, long(6), long(0), long(3)),
        2: PaddedTokensInputs(states, experts, weights, factors, long(3, 3), long(0, 4), long(8, 8)),
        3: PaddedTokensInputs(states, experts, weights, factors, long(2, 3), long(0, 0), long(4, 4)),
    }


INPUTS = {
    "moe_gating": gating, "moe_routing": routing, "moe_finalize": finalizing, "moe_experts": mixture,
    "grouped_matmul": grouped, "dynamic_quant": dynamic, "quant_matmul": quantised,
    "weight_quant_matmul": weight_quantised, "swiglu": gated, "swiglu_quant": activated, "int4_pack": packing,
    "scale_pack": scales, "format_cast": casts, "padded_tokens": padding,
}  # fmt: skip


def implementations(component, twin):
    os.environ["TWIN"] = "1" if twin else "0"
    spec = importlib.util.spec_from_file_location(f"{component}_{twin}", HERE / f"{component}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {int(one.name.split(component + "_")[1][:2]): one for one in vars(module).values() if isinstance(one, Implementation)}


def judged(component, item, inputs):
    """The worst ratio of the last of the inputs, and what is wrong."""
    subject = Subject(component, item, TARGET).fresh()
    calls = inputs if isinstance(inputs, list) else [inputs]
    for call in calls:
        outputs = subject.run(call)
    result = compare(component.reference(calls[-1]), outputs)
    return result.holds, result.worst


def main():
    failed = 0
    for name, made in INPUTS.items():
        component, inputs = load_component(name), made()
        wrong, twins = implementations(name, False), implementations(name, True)
        assert set(wrong) == set(twins) == set(inputs), name
        for number, item in wrong.items():
            holds, worst = judged(component, item, inputs[number])
            bad = [other for other, case in inputs.items() if not judged(component, twins[number], case)[0]]
            proved = not holds and not bad
            failed += not proved
            others = [other for other, case in inputs.items() if not judged(component, item, case)[0]]
            print(f"{'proved' if proved else 'NOT PROVED'}  {item.name}  ratio {worst:.3g}  wrong in {others}"
                  + (f"  twin wrong in {bad}" if bad else ""))  # fmt: skip
    print("all proved" if not failed else f"{failed} not proved")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
