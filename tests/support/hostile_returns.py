"""What an implementation should not return, or may well return though it looks odd."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import enum
import types

import numpy as np
import torch
from _pytest import outcomes

from npudiff.model.component import NotApplicable


def angry(*_, **__):
    raise LookupError("do not touch me")


class Angry:
    """Raises whatever it is asked."""

    __getattribute__ = __repr__ = __str__ = __len__ = __iter__ = __bool__ = __eq__ = angry
    __hash__ = object.__hash__


class Liar:
    """Says that it is a tensor."""

    __class__ = torch.Tensor
    shape, dtype = torch.Size([1]), torch.float32


class Duck:
    """Has a shape and a dtype, and nothing else of a tensor."""

    shape, dtype = (1,), torch.float32


class AngryError(Exception):
    """An exception that cannot be told."""

    __str__ = __repr__ = __bool__ = __eq__ = angry
    __hash__ = Exception.__hash__


class Leaves(BaseException):
    """What test runners and schedulers raise to leave."""


class Plain(torch.Tensor):
    """A subclass as libraries have them, for what belongs to a tensor."""


class AngryFunction(torch.Tensor):
    """A subclass whose functions raise."""

    __torch_function__ = classmethod(angry)
    shape = dtype = property(angry)
    detach = cpu = clone = angry


class AngryDispatch(torch.Tensor):
    """A subclass whose operations raise."""

    __torch_dispatch__ = classmethod(angry)


class AngryDict(dict):
    """A dict of which only Python itself can read anything."""

    __iter__ = __getitem__ = __len__ = __contains__ = items = keys = values = get = angry


class AngryMapping(collections.abc.Mapping):
    """A mapping that raises when it is read."""

    __iter__ = __getitem__ = __len__ = angry


class Endless(collections.abc.Mapping):
    """A mapping without an end."""

    def __iter__(self):
        return iter(int, 1)

    def __getitem__(self, key):
        return torch.ones(1)

    def __len__(self):
        return 1


class Text(str):
    """A string that is equal to nothing."""

    __slots__ = ()
    __eq__ = __repr__ = __str__ = angry
    __hash__ = str.__hash__


class Unlike(str):
    """A string that is another key of a dict than the same text."""

    __slots__ = ()

    def __hash__(self):
        return 1 + str.__hash__(self)

    __eq__ = object.__eq__


@dataclasses.dataclass
class Outputs:
    """Outputs as fields."""

    output: torch.Tensor


def raising(error):
    def raises(*_):
        raise error

    return raises


def whole(make):
    """Return something else instead of all outputs."""
    return lambda outputs, name: make()


def part(make):
    """Return something else in place of one output."""
    return lambda outputs, name: {**outputs, name: make(outputs[name])}


def renamed(make):
    """Return the outputs in another container, or under other names."""
    return lambda outputs, name: make(outputs)


def strided(tensor):
    wide = torch.zeros(*tensor.shape, 3, dtype=tensor.dtype)
    wide[..., 1] = tensor
    return wide[..., 1]


def offset(tensor):
    memory = torch.zeros(tensor.numel() + 7, dtype=tensor.dtype)
    memory[7:] = tensor.flatten()
    return memory[7:].view(tensor.shape)


def negative_view(tensor):
    return torch._neg_view(-tensor) if tensor.is_floating_point() else tensor


def imaginary(tensor):
    if tensor.dtype not in (torch.float32, torch.float64):
        return tensor
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


def of_subclass(kind):
    return lambda tensor: torch.Tensor._make_subclass(kind, tensor)


def without_memory(tensor):
    lost = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    lost.untyped_storage().resize_(0)
    return lost


def vast(tensor):
    return torch.zeros(1, dtype=tensor.dtype).expand(2**40)


def batched(tensor):
    kept = []
    torch.vmap(lambda row: (kept.append(row), row)[1])(torch.ones(2, 3))
    return kept[0]


def differentiated(tensor):
    kept = []
    torch.func.grad(lambda row: (kept.append(row), row.sum())[1])(torch.ones(3))
    return kept[0]


def faked(tensor):
    with torch._subclasses.FakeTensorMode():
        return torch.empty(tensor.shape, dtype=tensor.dtype)


def inferred(tensor):
    with torch.inference_mode():
        return tensor.clone()


async def later():
    return None


def coroutine():
    made = later()
    made.close()  # or Python says that nobody has waited for it
    return made


def named_by_members(outputs):
    members = enum.Enum("Members", {name: name for name in outputs}, type=str)
    return dict(zip(members, outputs.values(), strict=True))


def nested(layout):
    return lambda tensor: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=layout)


def quantised(tensor):
    return torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)


HOSTILE = {  # what is made of right outputs and of the name of one; what is told of it, or None where it is right
    # what is not outputs
    "none": (whole(lambda: None), "must return a tensor or a mapping of .*, got NoneType"),
    "number": (whole(lambda: 1.5), "got float"),
    "text": (whole(lambda: "output"), "got str"),
    "tuple": (renamed(lambda outputs: tuple(outputs.values())), "got tuple"),
    "list": (renamed(lambda outputs: list(outputs.values())), "got list"),
    "generator": (renamed(lambda outputs: (one for one in outputs.values())), "got generator"),
    "coroutine": (whole(coroutine), "got coroutine"),
    "lambda": (whole(lambda: angry), "got function"),
    "class": (whole(lambda: torch.Tensor), "got torch._C._TensorMeta"),
    "dataclass": (whole(lambda: Outputs(torch.ones(1))), r"got \S*Outputs"),
    "numpy": (renamed(lambda outputs: np.ones(3)), r"got numpy\.ndarray"),
    "numpy scalar": (whole(lambda: np.float32(1)), r"got numpy\.float32"),
    "storage": (whole(lambda: torch.ones(1).untyped_storage()), "got torch.storage.UntypedStorage"),
    "angry": (whole(Angry), r"got \S*Angry"),
    "liar": (whole(Liar), r"got \S*Liar"),
    "duck": (whole(Duck), r"got \S*Duck"),
    "module": (whole(lambda: torch), "got module"),
    # mappings
    "empty": (whole(dict), "got none"),
    "unknown name": (whole(lambda: {"nope": torch.ones(1)}), "among .*, got 'nope'"),
    "long name": (whole(lambda: {"n" * 10**6: torch.ones(1)}), "got 'nnn"),
    "escapes in a name": (whole(lambda: {"\x1b[2J\n": torch.ones(1)}), r"got '\\x1b\[2J\\n'"),
    "half a surrogate": (whole(lambda: {"\ud800": torch.ones(1)}), r"got '\\ud800'"),
    "number as a name": (whole(lambda: {0: torch.ones(1)}), "got int"),
    "none as a name": (whole(lambda: {None: torch.ones(1)}), "got NoneType"),
    "tensor as a name": (whole(lambda: {torch.ones(1): torch.ones(1)}), "got torch.Tensor"),
    "angry name": (whole(lambda: {Angry(): torch.ones(1)}), r"got \S*Angry"),
    "a name twice": (renamed(lambda outputs: outputs | {Unlike(n): v for n, v in outputs.items()}), "twice"),
    "another one besides": (renamed(lambda outputs: {**outputs, "nope": torch.ones(1)}), "got 'nope'"),
    "angry mapping": (whole(AngryMapping), "LookupError: do not touch me"),
    "endless mapping": (whole(Endless), "got int"),
    "names of another class": (renamed(lambda outputs: {Text(n): v for n, v in outputs.items()}), None),
    "names that are members": (renamed(named_by_members), None),
    "angry dict": (renamed(AngryDict), None),
    "ordered dict": (renamed(collections.OrderedDict), None),
    "default dict": (renamed(lambda outputs: collections.defaultdict(angry, outputs)), None),
    "read-only mapping": (renamed(types.MappingProxyType), None),
    "user dict": (renamed(collections.UserDict), None),
    "chained": (renamed(collections.ChainMap), None),
    # what is in one place of a mapping
    "none inside": (part(lambda _: None), "must be a torch.Tensor, got NoneType"),
    "numpy inside": (part(lambda tensor: np.ones(tuple(tensor.shape))), r"got numpy\.ndarray"),
    "list inside": (part(lambda tensor: [1.0]), "must be a torch.Tensor, got list"),
    "number inside": (part(lambda tensor: 1.0), "got float"),
    "angry inside": (part(lambda tensor: Angry()), r"got \S*Angry"),
    "liar inside": (part(lambda tensor: Liar()), r"got \S*Liar"),
    # tensors without elements that can be read
    "meta": (part(lambda tensor: tensor.to("meta")), "on the device meta"),
    "sparse": (part(lambda tensor: torch.ones(2, 3).to_sparse()), "layout torch.sparse_coo"),
    "compressed": (part(lambda tensor: torch.ones(2, 3).to_sparse_csr()), "layout torch.sparse_csr"),
    "mkldnn": (part(lambda tensor: torch.ones(2, 3).to_mkldnn()), "layout torch._mkldnn"),
    "nested": (part(nested(torch.strided)), "a nested one"),
    "jagged": (part(nested(torch.jagged)), "whose class runs code"),
    "quantised": (part(quantised), "a quantised one of dtype torch.qint8"),
    "complex": (part(lambda tensor: torch.ones(2, dtype=torch.complex64)), "dtype torch.complex64, whose elements"),
    "half complex": (part(lambda tensor: torch.ones(2, dtype=torch.complex64).to(torch.complex32)), "complex32"),
    "conjugate": (part(lambda tensor: torch.ones(2, dtype=torch.complex64).conj()), "dtype torch.complex64"),
    "four bits": (part(lambda tensor: torch.empty(4, dtype=torch.uint4)), "dtype torch.uint4"),
    "bits": (part(lambda tensor: torch.empty(4, dtype=torch.bits8)), "dtype torch.bits8"),
    "fake": (part(faked), "FakeTensor whose class runs code"),
    "angry operations": (part(of_subclass(AngryDispatch)), "AngryDispatch whose class runs code"),
    "left vmap": (part(batched), r"which has left torch\.vmap"),
    "left grad": (part(differentiated), r"which has left torch\.func\.grad"),
    "functional": (part(torch._to_functional_tensor), r"which has left torch\.func\.functionalize"),
    "without memory": (part(without_memory), "in memory of 0 bytes"),
    "vast": (part(vast), "repeats . bytes? of memory"),
    # tensors of another form
    "one axis more": (part(lambda tensor: tensor[None]), "shape"),
    "one axis less": (part(lambda tensor: tensor.flatten()[None, None, None, None, None]), "shape"),
    "no axis": (part(lambda tensor: tensor.new_zeros(())), "shape"),
    "no element": (part(lambda tensor: tensor.new_zeros(0, 3)), "shape"),
    "one row more": (part(lambda tensor: torch.cat([tensor, tensor[:1]])), "shape"),
    "one row less": (part(lambda tensor: tensor[:-1]), "shape"),
    "65 axes": (part(lambda tensor: tensor.new_zeros([1] * 64)), "shape"),
    "double": (part(lambda tensor: tensor.double()), "dtype"),
    "eight bits": (part(lambda tensor: tensor.new_zeros(tensor.shape).to(torch.float8_e5m2)), "dtype"),
    "unsigned": (part(lambda tensor: torch.zeros(tensor.shape, dtype=torch.uint16)), "dtype"),
    # tensors that are fine as they are
    "strided": (part(strided), None),
    "offset": (part(offset), None),
    "negative view": (part(negative_view), None),
    "imaginary part": (part(imaginary), None),
    "parameter": (part(lambda tensor: torch.nn.Parameter(tensor, requires_grad=False)), None),
    "with gradients": (part(lambda tensor: tensor.requires_grad_(tensor.is_floating_point())), None),
    "inferred": (part(inferred), None),
    "subclass": (part(of_subclass(Plain)), None),
    "angry functions": (part(of_subclass(AngryFunction)), None),
    # exceptions
    "angry error": (raising(AngryError()), "AngryError: .its text cannot be read: LookupError"),
    "leaves": (raising(Leaves("bye")), "Leaves: bye"),
    "exits": (raising(SystemExit(0)), "SystemExit: 0"),
    "skips": (raising(outcomes.Skipped("not today")), "Skipped: not today"),
    "says that it does not apply": (raising(NotApplicable("nothing to see")), "NotApplicable: nothing to see"),
    "generator is left": (raising(GeneratorExit()), "GeneratorExit"),
}
