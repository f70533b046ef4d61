"""One call of ``npu_fusion_attention``, and what is refused of it.

Sources: DOC, its documentation; op-plugin, ``FlashAttentionKernelNpuOpApi.cpp`` (WRAPPER, in the order of its checks).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from npudiff.device.simulator.argument_checks import FLOATS, ArgumentChecks
from npudiff.device.simulator.errors import DeviceFault, ErrorCode, UndefinedBehaviour
from npudiff.device.simulator.fused_attention.layouts import rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LAYOUTS = ("BSH", "SBH", "BNSD", "BSND", "TND")
TEMPLATE_MODES = (2, 3, 4)
"""Modes whose mask is a 2048 x 2048 template of a causal triangle; the band alone decides."""

PREFIX, PREFIX_TEMPLATE = 5, 6
"""Modes of a causal triangle at the right end beside as many keys as ``prefix`` says; in the second one a template of
3072 x 2048 is the mask."""

_MAXIMUM = 2147483647
_TEMPLATE = 2048
_PREFIX_TEMPLATE = 3072
_CUT_MODES = (7, 8)
_MOST_PREFIXES, _MOST_PACKED_PREFIXES = 2048, 1024
_OUTER_PSE = (0, 1)
_FIRST_NAMES = {"pre_tokens": "pre_tockens", "next_tokens": "next_tockens"}
_MAX_HEAD_DIM = 768
_MAX_HEADS = 256


@dataclass(frozen=True, kw_only=True)
class FusionRequest:
    """A call of ``npu_fusion_attention``; names are its own."""

    query: Tensor
    key: Tensor
    value: Tensor
    head_num: int
    input_layout: str
    """In capitals, which it need not be in a call."""
    pse: Tensor | None = None
    padding_mask: Tensor | None = None
    atten_mask: Tensor | None = None
    scale: float = 1.0
    keep_prob: float = 1.0
    pre_tockens: int = _MAXIMUM
    next_tockens: int = _MAXIMUM
    inner_precise: int = 0
    prefix: Sequence[int] | None = None
    actual_seq_qlen: Sequence[int] | None = None
    actual_seq_kvlen: Sequence[int] | None = None
    sparse_mode: int = 0
    softmax_layout: str = ""
    sink: Tensor | None = None
    """float32 [head_num]: a score without a value."""
    dropout_mask: Tensor | None = None
    seed: int = 0
    offset: int = 0
    pse_type: int | None = None
    """0: pse is added to scaled products, 1: scaled with them; None: as the profile says, in the first version."""
    query_rope: Tensor | None = None
    key_rope: Tensor | None = None
    q_start_idx: Sequence[int] | None = None
    kv_start_idx: Sequence[int] | None = None
    operator: str = "npu_fusion_attention"

    @property
    def check(self) -> ArgumentChecks:
        """The checks of the operator that was called."""
        return ArgumentChecks(self.operator, default=ErrorCode.PARAMETER)

    @property
    def packed(self) -> bool:
        """Whether all sequences lie one after the other on one T axis."""
        return self.input_layout == "TND"

    @property
    def sizes(self) -> dict[str, int]:
        """The query's sizes by axis letter, with N and D."""
        sizes = dict(zip(self.input_layout, self.query.shape, strict=True))
        if "H" in sizes:
            sizes |= {"N": self.head_num, "D": sizes.pop("H") // self.head_num}
        return sizes

    @property
    def kv_heads(self) -> int:
        """Heads of key and value."""
        if "H" in self.input_layout:
            return self.key.shape[2] // (self.sizes["D"] or 1)
        return self.key.shape[self.input_layout.index("N")]

    @property
    def value_dim(self) -> int:
        """The head dim of value; that of query where there are no keys."""
        if "H" in self.input_layout:
            return self.value.shape[2] // self.kv_heads if self.kv_heads else self.sizes["D"]
        return self.value.shape[-1]

    def rows_of(self, batch: int, window: range, kept: range) -> tuple[Tensor, Tensor, Tensor]:
        """Return a sequence's queries, keys and values, as [heads, rows or keys, head dim]."""
        layout = self.input_layout
        queries = rows(self.query, layout, self.head_num, batch, window)
        keys, values = (rows(one, layout, self.kv_heads, batch, kept) for one in (self.key, self.value))
        return queries, keys, values

    @property
    def key_rows(self) -> int:
        """Length of the key's S or T axis."""
        return self.key.shape[self.input_layout.index("T" if self.packed else "S")]


def normalise_fusion(input_layout: str, **arguments: object) -> FusionRequest:
    """Take the arguments of a call; nothing is checked."""
    return FusionRequest(input_layout=input_layout.upper(), **_without_streams(arguments))  # type: ignore[arg-type]


def normalise_fusion_v2(**arguments: object) -> FusionRequest:
    """Take the arguments of a call of the second version; nothing is checked."""
    first = {_FIRST_NAMES.get(name, name): value for name, value in arguments.items()}
    return normalise_fusion(**{"operator": "npu_fusion_attention_v2", "pse_type": 1} | first)  # type: ignore[arg-type]


def normalise_fusion_v3(**arguments: object) -> FusionRequest:
    """Take the arguments of a call of the third version, whose lengths and seeds are tensors of the host."""
    numbers = {name: _numbers(arguments.pop(name, None)) for name in ("actual_seq_qlen", "actual_seq_kvlen")}
    drawing = {name: next(iter(_numbers(arguments.pop(name, None)) or ()), 0) for name in ("seed", "offset")}
    given = {"operator": "npu_fusion_attention_v3"} | arguments | numbers | drawing
    return normalise_fusion(**given)  # type: ignore[arg-type]


def _numbers(tensor: object) -> list[int] | None:
    if tensor is None:
        return None
    numbers: list[int] = tensor.flatten().tolist()  # type: ignore[attr-defined]
    return numbers


def _without_streams(arguments: dict[str, object]) -> dict[str, object]:
    """Leave out on which stream a mask is drawn, and how many bits it has, which shapes say."""
    return {name: value for name, value in arguments.items() if name not in {"gen_mask_parallel", "sync", "numels"}}


def check_wrapper(request: FusionRequest) -> None:
    """Raise what the wrapper raises, in its words."""
    if request.head_num <= 0:
        words = f"head_num must > 0, but got {request.head_num}"
        raise request.check.rejected("head_num", request.head_num, "greater than 0", ErrorCode.WRAPPER, words)
    for name in ("query", "key", "value"):
        rank = getattr(request, name).dim()
        words = f"The shapes of the input {name} should be 3 or 4 dimensional, but got {rank}-dimensional"
        if rank not in (3, 4):
            raise request.check.rejected(name, f"of rank {rank}", "rank 3 or 4", ErrorCode.WRAPPER, words)
    if not 0 < request.keep_prob <= 1:
        words = f"The keep_prob value must be in range of (0, 1], but got {request.keep_prob}"
        raise request.check.rejected("keep_prob", request.keep_prob, "above 0, up to 1", ErrorCode.WRAPPER, words)
    request.check.choice(
        "softmax_layout", request.softmax_layout, ("", "TND"), ErrorCode.WRAPPER, "only supported softmax_layout=TND"
    )
    if request.softmax_layout and not request.packed:
        words = "softmax_layout=TND only supported when input_layout_str=TND"
        raise request.check.rejected(
            "softmax_layout", request.softmax_layout, "'' without TND", ErrorCode.WRAPPER, words
        )
    modes, said = ((0, 1, 2, 3, 4, 6, 7, 8), "[0,5) or (5,8]") if request.packed else (range(7), "[0,6]")
    words = f"The sparse_mode value must be in range of {said}, but got {request.sparse_mode}"
    request.check.choice("sparse_mode", request.sparse_mode, modes, ErrorCode.WRAPPER, words)
    if request.packed and (
        not request.actual_seq_qlen or len(request.actual_seq_qlen) != len(request.actual_seq_kvlen or ())
    ):
        words = "the size of actual_seq_qlen and actual_seq_kvlen must be the same and cannot be empty."
        given = f"{request.actual_seq_qlen} with actual_seq_kvlen {request.actual_seq_kvlen}"
        raise request.check.rejected(
            "actual_seq_qlen", given, "as many lengths as actual_seq_kvlen", ErrorCode.WRAPPER, words
        )
    words = "The input_layout should be BSH/SBH/BNSD/BSND/TND(case-insensitive), but got " + request.input_layout
    request.check.choice("input_layout", request.input_layout, LAYOUTS, ErrorCode.WRAPPER, words)
    for name in ("query", "key", "value"):
        request.check.rank(name, getattr(request, name), len(request.input_layout), request.input_layout)


def check(request: FusionRequest) -> None:
    """Refuse what DOC refuses and what is not simulated, of a call that the wrapper takes."""
    _check_simulated(request)
    query, key, value, sizes = request.query, request.key, request.value, request.sizes
    request.check.dtype("query", query, *FLOATS)
    for name, tensor in (("key", key), ("value", value), ("pse", request.pse)):
        if tensor is not None:
            request.check.same_dtype(name, tensor, "query", query)
    heads, dim, kv_heads = sizes["N"], sizes["D"], request.kv_heads
    if heads != request.head_num or heads > _MAX_HEADS:
        raise request.check.rejected("head_num", request.head_num, f"the {heads} heads of query, up to {_MAX_HEADS}")
    if not kv_heads or heads % kv_heads:
        raise request.check.rejected("head_num", heads, f"a multiple of the {kv_heads} heads of key")
    if not 0 < request.value_dim <= dim <= _MAX_HEAD_DIM:
        given = f"of head dim {request.value_dim}, with {dim} of query"
        raise request.check.rejected("value", given, f"1 to that of query, which is up to {_MAX_HEAD_DIM}")
    shape = {**sizes, "N": kv_heads, "H": kv_heads * dim, "S": -1, "T": -1}
    request.check.shape(
        "key", key, [shape[axis] for axis in request.input_layout], meaning="the batch and head dim of query"
    )
    shape |= {"D": request.value_dim, "H": kv_heads * request.value_dim}
    shape |= {"S": request.key_rows, "T": request.key_rows}
    request.check.shape(
        "value", value, [shape[axis] for axis in request.input_layout], meaning="the tokens and heads of key"
    )
    if request.sink is not None:
        request.check.dtype("sink", request.sink, "float32")
        request.check.shape("sink", request.sink, (heads,), meaning="[head_num]")
    _check_pse(request)
    _check_mask(request)
    for name, ends, count in (
        ("actual_seq_qlen", request.actual_seq_qlen, len(query)),
        ("actual_seq_kvlen", request.actual_seq_kvlen, len(key)),
    ):
        if request.packed:
            _check_ends(request, name, ends or (), count)


def _check_simulated(request: FusionRequest) -> None:
    if request.padding_mask is not None:
        raise request.check.rejected("padding_mask", "a tensor", "None")
    for name in ("query_rope", "key_rope"):
        if getattr(request, name) is not None:
            raise request.check.not_simulated(name, "a tensor", "None")
    for name in ("q_start_idx", "kv_start_idx"):
        if getattr(request, name):
            raise request.check.not_simulated(name, list(getattr(request, name)), "None")
    if request.pse_type not in (None, *_OUTER_PSE):
        raise request.check.not_simulated("pse_type", request.pse_type, "0 or 1")
    if request.dropout_mask is not None:
        request.check.dtype("dropout_mask", request.dropout_mask, "uint8")
    if request.atten_mask is not None and request.sparse_mode in _CUT_MODES:
        raise request.check.not_simulated("sparse_mode", request.sparse_mode, "0 to 6")


def _check_pse(request: FusionRequest) -> None:
    """Refuse a pse that is not [1 or batch, heads, 1 or rows, keys]."""
    if request.pse is None:
        return
    if request.packed:
        raise request.check.not_simulated("pse", "a tensor, with TND", "None with TND")
    sizes = request.sizes
    rows, keys = sizes["S"], request.key_rows
    if request.pse.dim() == 4 and request.pse.shape[2] not in (1, rows):
        raise request.check.not_simulated("pse", f"of shape {list(request.pse.shape)}", "1 row, or as many as query")
    shapes = [(batch, sizes["N"], some, keys) for batch in (1, sizes["B"]) for some in (1, rows)]
    request.check.shape("pse", request.pse, *shapes, meaning="[1 or batch, heads, 1 or rows, keys]")


def _check_mask(request: FusionRequest) -> None:
    mask, sizes = request.atten_mask, request.sizes
    if mask is None:
        return
    request.check.dtype("atten_mask", mask, "bool", "uint8")
    if request.sparse_mode in (*TEMPLATE_MODES, PREFIX_TEMPLATE):
        _check_template(request, mask)
        return
    if request.packed:
        request.check.rank("atten_mask", mask, 2, "[longest query, longest key]")
        return
    rows, keys = sizes["S"], request.key_rows
    leading = (sizes["B"], sizes["N"]), (sizes["B"], 1), (1, 1)
    shapes = [(*batch_and_heads, rows, keys) for batch_and_heads in leading]
    request.check.shape(
        "atten_mask", mask, (rows, keys), *shapes, meaning="[rows, keys], or that of each batch or head"
    )


def _check_template(request: FusionRequest, mask: Tensor) -> None:
    """Refuse a template of another shape, and say what is undefined of one with another content."""
    rows = _PREFIX_TEMPLATE if request.sparse_mode == PREFIX_TEMPLATE else _TEMPLATE
    request.check.shape("atten_mask", mask, (rows, _TEMPLATE), meaning="a template, with this sparse_mode")
    triangle, below = mask[:_TEMPLATE], mask[_TEMPLATE:]
    half = _TEMPLATE // 2
    if (
        triangle.diagonal(0).any()
        or not triangle.diagonal(1).all()
        or below[:, :half].any()
        or not below[:, half:].all()
    ):
        wanted = f"torch.triu(torch.ones({_TEMPLATE}, {_TEMPLATE}), diagonal=1)"
        wanted += ", and under it a half of 0 beside a half of 1" if len(below) else ""
        raise UndefinedBehaviour(
            f"{request.operator}: atten_mask of sparse_mode {request.sparse_mode} must be {wanted}"
        )


def prefixes(request: FusionRequest, lengths: Sequence[tuple[int, int]]) -> Sequence[int] | None:
    """Return how many keys each sequence shows to all its rows; None where the mask alone decides.

    Parameters
    ----------
    request : FusionRequest
        With a mask, and a sparse mode of prefixes.
    lengths : sequence of tuple of int
        Rows and keys of each sequence.

    Raises
    ------
    OperatorRejected
        With a template: ``prefix`` is missing, of another length, or shows fewer keys than the triangle shows the first
        row, or more than there are. Without a template the operator takes all keys then, and says so in its log only.
    """
    most = _MOST_PACKED_PREFIXES if request.packed else _MOST_PREFIXES
    given = request.prefix or ()
    right = len(given) == len(lengths) <= most and all(
        max(0, keys - rows) <= one <= keys for one, (rows, keys) in zip(given, lengths, strict=True)
    )
    if right:
        _check_prefix_mask(request)
        return given
    if request.sparse_mode == PREFIX_TEMPLATE:
        wanted = [f"{max(0, keys - rows)} to {keys}" for rows, keys in lengths[:4]]
        raise request.check.rejected("prefix", list(given), f"{len(lengths)} of up to {most}: {', '.join(wanted)} ...")
    return None


def _check_prefix_mask(request: FusionRequest) -> None:
    """Refuse one mask for several sequences, which show different keys."""
    mask, batch = request.atten_mask, request.sizes.get("B", 1)
    if request.sparse_mode == PREFIX and mask is not None and batch > 1 and (mask.dim() < 4 or len(mask) < batch):
        raise request.check.rejected(
            "atten_mask", f"of shape {list(mask.shape)}", "[B, N or 1, rows, keys], with prefix"
        )


def _check_ends(request: FusionRequest, name: str, ends: Sequence[int], count: int) -> None:
    """Refuse ends of sequences that decrease, but for zeros at the end, and those behind the last token."""
    last = 0
    for position, end in enumerate(ends):
        if end < last and any(ends[position:]):
            raise UndefinedBehaviour(f"{request.operator}: {name} is {list(ends)}, which decreases at {position}")
        last = max(last, end)
    if last > count:
        raise DeviceFault(f"{request.operator}: {name} ends at {last}, and there are {count} tokens")
    if min(ends) < 0:
        raise request.check.rejected(name, list(ends), "0 or more each")
