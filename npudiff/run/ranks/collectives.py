"""The collectives of ``torch.distributed`` between ranks of one host that have no device of their own.

They go over a mesh, and keep HCCL's rules where a difference would hide a bug: every rank has to call the same with the
same shapes, dtypes and operation, and nothing is reduced bit by bit. Who does otherwise raises at once, where a device
would hang or mix elements.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from npudiff.run.isolation.ipc import flat_bytes
from npudiff.run.ranks.mesh import Mesh, RanksDiffer

BACKEND = "npudiff"
"""What ``torch.distributed.get_backend`` says of it."""

ROUNDS_EACH_STEP = True
"""Whether a sum over ranks is rounded to the dtype of its elements after each addition, or once at the end.

HCCL's documents say neither, nor in which order ranks are added. This is the choice that hurts."""

_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add, "avg": torch.add, "product": torch.mul, "max": torch.maximum, "min": torch.minimum,
}  # fmt: skip
_HALF = (torch.float16, torch.bfloat16)
_BYTES = (torch.bool, torch.uint8)


def join(mesh: Mesh, rank: int, size: int) -> None:
    """Begin ``torch.distributed`` in this process, as one rank of all that a mesh connects."""
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, functools.partial(_group, mesh), extended_api=True, devices="cpu")
    dist.init_process_group(BACKEND, store=HashStore(), rank=rank, world_size=size)


def _group(mesh: Mesh, given: Any, _: Any) -> HostGroup:  # noqa: ANN401 - torch's own options have no public type
    ranks = list(given.global_ranks_in_group or range(given.group_size))
    return HostGroup(mesh, ranks, str(given.group_id))


class _Done(dist.Work):
    """A call that is over when it is waited for; what it waits for comes then."""

    def __init__(self, finishes: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._finishes: Callable[[], None] | None = finishes

    def wait(self, timeout: object = None) -> bool:
        """Wait until the call is over."""
        del timeout  # a mesh has its own
        finishes, self._finishes = self._finishes, None
        if finishes is not None:
            finishes()
        return True

    def is_completed(self) -> bool:
        """Whether it is over."""
        return self._finishes is None


_ProcessGroup: Any = dist.ProcessGroup
"""Its methods have two forms each, of which ``torch.distributed`` calls one."""


class HostGroup(_ProcessGroup):  # type: ignore[misc]
    """A process group whose ranks send each other what they have.

    Parameters
    ----------
    mesh : Mesh
        Lines of this rank to all others.
    ranks : sequence of int
        The numbers, in the mesh, of the ranks of the group.
    name : str
        Of the group, the same on all ranks.
    """

    def __init__(self, mesh: Mesh, ranks: Sequence[int], name: str) -> None:
        super().__init__(ranks.index(mesh.rank), len(ranks))
        self._mesh, self._ranks, self._channel = mesh, list(ranks), name
        self._own = ranks.index(mesh.rank)

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """Name of the backend."""
        return BACKEND

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:  # noqa: ANN401
        """Reduce a tensor over all ranks, in place."""
        tensor = _one(tensors)
        name = _operation(opts)
        parts = self._gathered(f"all_reduce {name} of {_shape(tensor)}", tensor)
        tensor.copy_(_reduced(parts, name, self._ranks_of_chunks(tensor.numel())).view(tensor.shape))
        return _Done()

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> dist.Work:  # noqa: ANN401
        """Reduce several tensors, one after the other."""
        for tensor in tensors:
            self.allreduce([tensor], opts)
        return _Done()

    def reduce(self, tensors: list[Tensor], opts: Any) -> dist.Work:  # noqa: ANN401
        """Reduce a tensor over all ranks; one has the result."""
        tensor = _one(tensors)
        name = _operation(opts)
        parts = self._gathered(f"reduce {name} to {opts.rootRank} of {_shape(tensor)}", tensor)
        if self._own == opts.rootRank:
            tensor.copy_(_reduced(parts, name, self._ranks_of_chunks(tensor.numel())).view(tensor.shape))
        return _Done()

    def broadcast(self, tensors: list[Tensor], opts: Any) -> dist.Work:  # noqa: ANN401
        """Give all ranks the tensor of one."""
        tensor = _one(tensors)
        parts = self._gathered(f"broadcast from {opts.rootRank} of {_shape(tensor)}", tensor)
        tensor.copy_(parts[opts.rootRank].view(tensor.shape))
        return _Done()

    def barrier(self, opts: Any = None) -> dist.Work:  # noqa: ANN401
        """Wait until all ranks are here."""
        del opts
        self._exchanged("barrier", [b""] * len(self._ranks))
        return _Done()

    def allgather(
        self, output_tensors: list[list[Tensor]], input_tensors: list[Tensor], opts: Any = None  # noqa: ANN401
    ) -> dist.Work:  # fmt: skip
        """Give all ranks the tensors of all, which may have different sizes."""
        del opts
        tensor, outputs = _one(input_tensors), output_tensors[0]
        if len(outputs) != len(self._ranks):
            raise ValueError(f"all_gather of {len(self._ranks)} ranks into {len(outputs)} tensors")
        contents = self._exchanged(f"all_gather of {tensor.dtype}", [_bytes(tensor)] * len(self._ranks))
        for rank, (output, content) in enumerate(zip(outputs, contents, strict=True)):
            _fill(output, content, f"all_gather: what rank {self._ranks[rank]} gives")
        return _Done()

    def all_gather_single(self, output: Tensor, tensor: Tensor, opts: Any = None) -> dist.Work:  # noqa: ANN401
        """Give all ranks the tensors of all, one after the other."""
        del opts
        parts = self._gathered(f"all_gather_into_tensor of {_shape(tensor)}", tensor)
        _fill(output, b"".join(map(_bytes, parts)), "all_gather_into_tensor: what all ranks give")
        return _Done()

    _allgather_base = all_gather_single

    def all_gather_single_coalesced(
        self, output_lists: list[Tensor], input_list: list[Tensor], opts: Any = None  # noqa: ANN401
    ) -> dist.Work:  # fmt: skip
        """Do so with several tensors."""
        for output, tensor in zip(output_lists, input_list, strict=True):
            self.all_gather_single(output, tensor, opts)
        return _Done()

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def reduce_scatter(
        self, output_tensors: list[Tensor], input_tensors: list[list[Tensor]], opts: Any = None  # noqa: ANN401
    ) -> dist.Work:  # fmt: skip
        """Reduce a list of tensors; each rank has one of the results."""
        output, given = _one(output_tensors), input_tensors[0]
        if len(given) != len(self._ranks):
            raise ValueError(f"reduce_scatter over {len(self._ranks)} ranks of {len(given)} tensors")
        self._reduce_scatter("reduce_scatter", output, given, _operation(opts))
        return _Done()

    def reduce_scatter_single(self, output: Tensor, tensor: Tensor, opts: Any = None) -> dist.Work:  # noqa: ANN401
        """Reduce a tensor; each rank has a part of the result."""
        if tensor.numel() != output.numel() * len(self._ranks):
            raise ValueError(f"reduce_scatter over {len(self._ranks)} ranks of {_shape(tensor)} into {_shape(output)}")
        flat = tensor.detach().reshape(-1)
        self._reduce_scatter("reduce_scatter_tensor", output, flat.chunk(len(self._ranks)), _operation(opts))
        return _Done()

    _reduce_scatter_base = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self, outputs: list[Tensor], tensors: list[Tensor], opts: Any = None  # noqa: ANN401
    ) -> dist.Work:  # fmt: skip
        """Do so with several tensors."""
        for output, tensor in zip(outputs, tensors, strict=True):
            self.reduce_scatter_single(output, tensor, opts)
        return _Done()

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def all_to_all_single(
        self, output: Tensor, tensor: Tensor, output_splits: list[int], input_splits: list[int], opts: Any = None  # noqa: ANN401
    ) -> dist.Work:  # fmt: skip
        """Give each rank some rows of a tensor."""
        del opts
        gives = _splits(tensor, input_splits, len(self._ranks), "input")
        gets = _splits(output, output_splits, len(self._ranks), "output")
        contents = [_bytes(part) for part in torch.split(tensor.detach(), gives)]
        got = self._exchanged(f"all_to_all_single of {tensor.dtype}", contents)
        for rank, (part, content) in enumerate(zip(torch.split(output.detach(), gets), got, strict=True)):
            _fill(part, content, f"all_to_all_single: what rank {self._ranks[rank]} gives")
        return _Done()

    alltoall_base = all_to_all_single

    def alltoall(self, output_tensors: list[Tensor], input_tensors: list[Tensor], opts: Any = None) -> dist.Work:  # noqa: ANN401
        """Give each rank a tensor."""
        del opts
        if not len(output_tensors) == len(input_tensors) == len(self._ranks):
            raise ValueError(f"all_to_all over {len(self._ranks)} ranks needs as many tensors")
        dtype = input_tensors[0].dtype
        got = self._exchanged(f"all_to_all of {dtype}", [_bytes(tensor) for tensor in input_tensors])
        for rank, (output, content) in enumerate(zip(output_tensors, got, strict=True)):
            _fill(output, content, f"all_to_all: what rank {self._ranks[rank]} gives")
        return _Done()

    def gather(self, output_tensors: list[list[Tensor]], input_tensors: list[Tensor], opts: Any) -> dist.Work:  # noqa: ANN401
        """Give one rank the tensors of all."""
        tensor = _one(input_tensors)
        parts = self._gathered(f"gather to {opts.rootRank} of {_shape(tensor)}", tensor)
        if self._own == opts.rootRank:
            for output, part in zip(output_tensors[0], parts, strict=True):
                output.copy_(part.view(output.shape))
        return _Done()

    def scatter(self, output_tensors: list[Tensor], input_tensors: list[list[Tensor]], opts: Any) -> dist.Work:  # noqa: ANN401
        """Give each rank a tensor of one."""
        output = _one(output_tensors)
        gives = input_tensors[0] if self._own == opts.rootRank else []
        contents = [_bytes(tensor) for tensor in gives] or [b""] * len(self._ranks)
        got = self._exchanged(f"scatter from {opts.rootRank} of {_shape(output)}", contents)
        _fill(output, got[opts.rootRank], f"scatter: what rank {self._ranks[opts.rootRank]} gives")
        return _Done()

    def send(self, tensors: list[Tensor], destination: int, tag: int) -> dist.Work:
        """Send a tensor to a rank; it does not wait until that takes it."""
        tensor = _one(tensors)
        self._mesh.post(self._ranks[destination], self._line(tag), _shape(tensor), _bytes(tensor))
        return _Done()

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> dist.Work:
        """Wait for a tensor of a rank, when the call is waited for."""
        tensor, peer = _one(tensors), self._ranks[source]

        def arrives() -> None:
            message = self._mesh.take(peer, self._line(tag), f"recv of {_shape(tensor)}")
            if message.said != _shape(tensor):
                said = f"rank {peer} sends {message.said}, and rank {self._mesh.rank} wants {_shape(tensor)}"
                raise RanksDiffer(said)
            _fill(tensor, message.content, f"recv: what rank {peer} sends")

        return _Done(arrives)

    def _line(self, tag: int) -> str:
        return f"{self._channel} from one to another, {tag}"

    def _exchanged(self, what: str, contents: Sequence[bytes]) -> list[bytes]:
        return self._mesh.exchange(self._ranks, self._channel, what, contents)

    def _gathered(self, what: str, tensor: Tensor) -> list[Tensor]:
        """What each rank has, in one dimension; all have the same shape."""
        contents = self._exchanged(what, [_bytes(tensor)] * len(self._ranks))
        return [_elements(content, tensor.dtype) for content in contents]

    def _reduce_scatter(self, name: str, output: Tensor, given: Sequence[Tensor], operation: str) -> None:
        _check_operation(output.dtype, operation)
        shapes = [list(tensor.shape) for tensor in given]
        what = f"{name} {operation} of {shapes} of {output.dtype}"
        got = self._exchanged(what, [_bytes(tensor) for tensor in given])
        parts = [_elements(content, output.dtype) for content in got]
        start = [(self._own, 0, parts[0].numel())]
        output.copy_(_reduced(parts, operation, start).view(output.shape))

    def _ranks_of_chunks(self, elements: int) -> list[tuple[int, int, int]]:
        """The rank that a chunk ends at, and where the chunk begins and ends, as a ring reduces: as many as ranks."""
        size = -(-elements // len(self._ranks))
        ends = [min(elements, size * (rank + 1)) for rank in range(len(self._ranks))]
        return [(rank, start, end) for rank, (start, end) in enumerate(itertools.pairwise([0, *ends]))]


def _one(tensors: Sequence[Tensor]) -> Tensor:
    """The only tensor of a call.

    Raises
    ------
    RuntimeError
        If there are several, or its elements do not lie one after the other, as torch_npu says it.
    """
    if len(tensors) != 1:
        raise RuntimeError("Expecting one tensor only")
    if not tensors[0].is_contiguous():
        raise RuntimeError("Tensors must be contiguous")
    return tensors[0]


def _shape(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype}"


def _operation(opts: Any) -> str:  # noqa: ANN401 - torch's own options
    if opts is None:
        return "sum"
    operation = str(getattr(opts.reduceOp, "op", opts.reduceOp)).rpartition(".")[2].lower()
    if operation not in _OPERATIONS:
        raise RuntimeError(f"Cannot use ReduceOp.{operation.upper()} with HCCL")
    return operation


def _check_operation(dtype: torch.dtype, operation: str) -> None:
    if operation == "avg" and not dtype.is_floating_point:
        raise RuntimeError(f"Cannot use ReduceOp.AVG with {dtype}: only 950 divides integers")


def _splits(tensor: Tensor, splits: Sequence[int], ranks: int, what: str) -> list[int]:
    rows = len(tensor) if tensor.dim() else 0
    if splits:
        if len(splits) != ranks or sum(splits) != rows:
            raise RuntimeError(f"all_to_all_single: {what} splits {list(splits)} of {ranks} ranks, and {rows} rows")
        return list(splits)
    if rows % ranks:
        raise RuntimeError(f"all_to_all_single: {what} has {rows} rows, which {ranks} ranks do not divide")
    return [rows // ranks] * ranks


def _bytes(tensor: Tensor) -> bytes:
    return flat_bytes(tensor).numpy().tobytes()


def _elements(content: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _fill(output: Tensor, content: bytes, what: str) -> None:
    """Put elements into a tensor.

    Raises
    ------
    RanksDiffer
        If it has another size.
    """
    size = output.numel() * output.element_size()
    if len(content) != size:
        raise RanksDiffer(f"{what} has {len(content)} bytes, and {size} are wanted")
    output.detach().copy_(_elements(content, output.dtype).view(output.shape))


def _reduced(parts: Sequence[Tensor], operation: str, chunks: Sequence[tuple[int, int, int]]) -> Tensor:
    """Return all parts reduced to one, chunk by chunk.

    Parameters
    ----------
    parts : sequence of Tensor
        Elements of each rank.
    operation : str
        How they are reduced.
    chunks : sequence
        The rank that a chunk ends at, whose own elements are the last that are added; its first element, and the end.
    """
    dtype = parts[0].dtype
    _check_operation(dtype, operation)
    wide = torch.float32 if dtype in _HALF else torch.int32 if dtype in _BYTES else dtype
    apply, made = _OPERATIONS[operation], []
    for rank, start, end in chunks:
        order = [parts[(rank + 1 + step) % len(parts)][start:end].to(wide) for step in range(len(parts))]
        total = order[0]
        for part in order[1:]:
            total = apply(total, part)
            if ROUNDS_EACH_STEP and dtype in _HALF:
                total = total.to(dtype).to(wide)
        made.append(total / len(parts) if operation == "avg" else total)
    return torch.cat(made).to(dtype)
