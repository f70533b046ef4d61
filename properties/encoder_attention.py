"""Attention of encoders: cases, data, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from npudiff.draw.cases import Case, Chooser, assume, axis, derived, part, seed, within
from npudiff.draw.data import Stream
from npudiff.judge.pattern import NOWHERE
from npudiff.judge.relations import Changed, Outputs, relation, rows_taken
from npudiff.model.component import Component, NotApplicable
from npudiff.model.constraints import Box, Numbers, allows
from npudiff.model.illegal import constant, wrong_element
from npudiff.properties._shared import rows
from npudiff.properties._shared.baselines import BASELINES
from npudiff.reference.encoder_attention import EncoderAttentionInputs, encoder_attention, spans
from npudiff.text import listed

RECIPES = ("gaussian", "needle", "outlier", "cold", "steep", "equal")
"""gaussian: independent values. needle: keys at the ends of sequences and of tiles take about half of the weight each.
outlier: values there are 64 times larger. cold: every score is below -50,000. steep: scores are so far apart that one
key of a row has nearly all of the weight. equal: all keys of a sequence are one."""

POISONS = ("large", "nan")
SCALES = (1.0, 0.5, 4.0)

LENGTHS = (
    *(1, 3, 2, 5, 0, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 196, 255, 256, 257, 400, 511, 512, 513),
    *(577, 729, 1023, 1024, 1025),
)
"""Tokens of a sequence: one more or less than tiles, and those of images."""

WINDOWS = (1, 4, 0, 2, 3, 7, 16, 15, 17, 12, 64, 28, 49, 64)
"""Tokens of each of many sequences: windows of a layer, which are smaller at the edges of an image."""

BATCHES = (1, 2, 3, 4, 2, 3, 5, 8, 13, 16, 33, 64)
FEW = 4
"""Sequences up to which all may be long."""

CROSS = (False, False, True)
ONE_LONG = (False, False, False, True)
"""How often one sequence of many is long."""

HEAD_DIMS = (64, 72, 80, 88, 128, 72, 80, 96, 112, 16, 192, 256, 32, 48, 104, 120, 8)

MOST_HEADS = 256
MOST_SCORES = 2**19
"""Scores up to which a case may have more heads, those between sequences included: a mask hides them."""
MOST_ELEMENTS = 2**20
"""Elements of queries up to which it may have wider heads."""

LARGE = 4096.0
"""Finite poison of values: exact in every 16-bit type, and far above what any right output holds."""

_TILES = (16, 64, 128, 256, 512, 1024)
_CHOSEN = 2
"""Ends of tiles in a sequence that have needles: more would share the weight."""
_COLD_SCORE = 60_000.0
_NEEDLE_NOISE = 0.5
_NEEDLE_VALUE, _OUTLIER_VALUE = 4.0, 64.0
_STEEP = 32.0
_LENGTHS = range(2**17 + 1)
_MOST_SCORES, _MOST_ELEMENTS = 2**34, 2**28


@dataclass(frozen=True)
class Packed:
    """Rows and keys of one sequence."""

    query: int
    kv: int


def _draw_sequences(choose: Chooser, box: Box, case: EncoderAttentionCase) -> tuple[Packed, ...]:
    del case  # nothing of it is drawn yet
    cross = choose.pick(within(CROSS, box.get("cross")))
    most = choose.value(box, "batch", BATCHES)
    query, kv = _lengths(choose, box, LENGTHS if most <= FEW else WINDOWS, cross)
    long, _ = _lengths(choose, box, LENGTHS, cross)

    def one(options: Sequence[int] = query) -> Packed:
        rows, keys = choose.pick(options), choose.pick(kv)
        return Packed(rows, keys if cross else rows)

    def alike(first: Packed, other: Packed) -> Packed:
        return replace(other, query=first.query) if cross else first

    drawn = list(choose.draw_list_of(box, "batch", most, one, alike))
    has_long, place, other = choose.pick(ONE_LONG), choose.pick(range(FEW)), one(long)
    if has_long and len(drawn) > FEW:
        drawn[place * (len(drawn) - 1) // (FEW - 1)] = other
    assume(allows(box.get("cross", CROSS), any(each.query != each.kv for each in drawn)))
    return tuple(drawn)


def _lengths(choose: Chooser, box: Box, usual: Sequence[int], cross: bool) -> tuple[Sequence[int], Sequence[int]]:
    """Rows and keys that sequences may have; the same, unless one may have more keys than rows."""
    query, kv = choose.options(box, "query_length", usual), choose.options(box, "kv_length", usual)
    if not cross:
        both = [one for one in query if allows(box.get("kv_length", (one,)), one)]
        query = kv = both or [one for one in kv if allows(box.get("query_length", (one,)), one)]
    assume(query)
    return query, kv


def _shown(case: EncoderAttentionCase) -> str:
    each = [f"{one.query}" if one.query == one.kv else f"{one.query}/kv{one.kv}" for one in case.sequences]
    return listed(each, "sequence", 12)


@dataclass(frozen=True)
class EncoderAttentionCase(Case):
    """One attention call, as sizes and recipes."""

    sequences: tuple[Packed, ...] = part(draw=_draw_sequences, shown=_shown)
    head_dim: int = axis(
        "elements of a head", range(1, 1025), 64, drawn=HEAD_DIMS, shown="dim {}", always=True,
        affordable=lambda case, dim: case.rows_and_keys * dim <= MOST_ELEMENTS,
    )  # fmt: skip
    kv_heads: int = axis(
        "KV heads", range(1, MOST_HEADS + 1), 1, drawn=(1, 2, 3, 4, 2, 3, 8, 5, 16, 12, 20),
        shown=lambda case: f"heads {case.heads}:{case.kv_heads}",
        affordable=lambda case, heads: case.affords_heads(heads),
    )  # fmt: skip
    group: int = axis(
        "query heads per KV head", range(1, 65), 1, drawn=(1, 1, 1, 2, 1, 3, 4, 7, 8), shown="",
        affordable=lambda case, group: case.affords_heads(case.kv_heads * group),
    )  # fmt: skip
    dtype: str = axis("dtype of queries, keys and values", ("bfloat16", "float16"), "bfloat16", always=True)
    padded_rows: int = axis(
        "rows and keys beyond the last sequence", range(2**16 + 1), 0, drawn=(0, 0, 1, 3), shown="{} padded row(s)"
    )
    scale: float = axis(
        "factor of the scores, in units of 1/sqrt(head dim)", Numbers(1e-6, 1e6), 1.0, drawn=SCALES, shown="scale x{:g}"
    )
    recipe: str = axis("how queries, keys and values are made", RECIPES, "gaussian")
    poison: str = axis(
        "what lies in rows that must not be used: large finite values, or NaN", POISONS, "large", shown="NaN poison"
    )
    rows: str = rows.axis()
    seed: int = seed()

    drawn_first = ("sequences", "kv_heads", "group", "head_dim")
    shown_first = ("sequences", "kv_heads", "head_dim", "dtype")
    outliers = ("batch", "query_length", "kv_heads", "group", "head_dim")

    @derived("number of sequences", range(1, 4097))
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.sequences)

    @derived("rows of a sequence", _LENGTHS, each=True)
    def query_length(self) -> Collection[int]:
        """Rows of the sequences."""
        return {one.query for one in self.sequences}

    @derived("keys of a sequence", _LENGTHS, each=True)
    def kv_length(self) -> Collection[int]:
        """Keys of the sequences."""
        return {one.kv for one in self.sequences}

    @derived("whether a sequence has more or fewer keys than rows", (False, True))
    def cross(self) -> bool:
        """Whether a sequence has more or fewer keys than rows."""
        return any(one.query != one.kv for one in self.sequences)

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.group

    @property
    def rows_and_keys(self) -> int:
        """Rows of all query heads, and keys of all KV heads."""
        return self.heads * self.all_rows + self.kv_heads * self.all_keys

    @property
    def all_rows(self) -> int:
        """Rows of all sequences."""
        return sum(one.query for one in self.sequences)

    @property
    def all_keys(self) -> int:
        """Keys of all sequences."""
        return sum(one.kv for one in self.sequences)

    def affords_heads(self, heads: int) -> bool:
        """Return whether there is a choice of so many heads."""
        return heads <= MOST_HEADS and heads * self.all_rows * self.all_keys <= MOST_SCORES

    def problems(self) -> Iterator[str]:
        """See ``DeclaredCase``."""
        if self.heads > MOST_HEADS:
            yield f"operators take at most {MOST_HEADS} heads, got {self.heads}"
        if (self.rows_and_keys + 2 * self.padded_rows * self.heads) * self.head_dim > _MOST_ELEMENTS:
            yield f"the inputs would have more than {_MOST_ELEMENTS} elements"
        if self.heads * self.all_rows * self.all_keys > _MOST_SCORES:
            yield f"the case would compute more than {_MOST_SCORES} scores"

    def is_cheap(self) -> bool:
        """See ``DeclaredCase``."""
        return self.heads * self.all_rows * self.all_keys <= 8 * MOST_SCORES

    def regions(self) -> Mapping[str, bool]:
        """See ``DeclaredCase``."""
        return {
            "several sequences": self.batch > 1,
            "many sequences": self.batch > FEW,
            "empty sequence": any(not one.query or not one.kv for one in self.sequences),
            "unequal sequences": len(set(self.sequences)) > 1,
            "keys unlike rows": self.cross,
            "padded head": self.head_dim not in (64, 128, 192),
            "grouped heads": self.group > 1,
        }


def build_inputs(case: EncoderAttentionCase) -> EncoderAttentionInputs:
    """Build the inputs of a case; the same case gives the same bits on every machine."""
    dtype = getattr(torch, case.dtype)
    direction = case.normal("direction", case.kv_heads, case.head_dim)
    direction = direction / direction.norm(dim=1, keepdim=True)
    strength = _query_strength(case)
    query = case.normal("query", case.all_rows + case.padded_rows, case.kv_heads, case.group, case.head_dim)
    query = query * _query_noise(case) + direction.unsqueeze(1) * strength
    query[case.all_rows :] = _poison(case)
    key, value = _keys_and_values(case, direction, strength)
    laid = (query.flatten(1, 2), key, value)
    query, key, value = (
        rows.with_row_stride(one.to(dtype), case.rows, gap) for one, gap in zip(laid, rows.GAPS, strict=True)
    )
    return EncoderAttentionInputs(
        query=query, key=key, value=value, scale=_scale(case),
        query_lengths=tuple(one.query for one in case.sequences), kv_lengths=tuple(one.kv for one in case.sequences),
    )  # fmt: skip


def _scale(case: EncoderAttentionCase) -> float:
    return case.scale / math.sqrt(case.head_dim)


def _query_strength(case: EncoderAttentionCase) -> float:
    """Length of all queries along a direction of their KV head."""
    if case.recipe == "cold":
        return math.sqrt(_COLD_SCORE / _scale(case))
    return math.sqrt(case.head_dim) / case.scale if case.recipe == "needle" else 0.0


def _query_noise(case: EncoderAttentionCase) -> float:
    return {"cold": 0.0, "needle": _NEEDLE_NOISE / case.scale, "steep": _STEEP}.get(case.recipe, 1.0)


def _poison(case: EncoderAttentionCase) -> float:
    return math.nan if case.poison == "nan" else LARGE


def _keys_and_values(
    case: EncoderAttentionCase, direction: torch.Tensor, strength: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values by recipe; those behind the last sequence have a visible part of the weight if they are seen."""
    shape = (case.all_keys + case.padded_rows, case.kv_heads, case.head_dim)
    key, value = case.normal("key", *shape), case.normal("value", *shape)
    if case.recipe == "cold":
        key[:] = direction * -strength
        value.abs_()
    for number, own in enumerate(spans([one.kv for one in case.sequences])):
        keys = own.stop - own.start
        if case.recipe == "equal":
            key[own] = key[own][:1].clone()
        places = [own.start + place for place in _borders(case, number, keys)]
        if case.recipe == "needle":
            key[places] = direction * _needle_length(case, strength, keys)
            value[places] *= _NEEDLE_VALUE
        elif case.recipe == "outlier":
            value[places] *= _OUTLIER_VALUE
    longest = max(one.kv for one in case.sequences)
    weighs = direction * _needle_length(case, strength, longest)
    key[case.all_keys :] = math.nan if case.poison == "nan" else weighs
    value[case.all_keys :] = _poison(case)
    return key, value


def _needle_length(case: EncoderAttentionCase, strength: float, keys: int) -> float:
    """Length that gives a key about half of the weight among so many, whose scores have the variance of ``needle``.

    0 where queries have no direction: then it has the score of an average key.
    """
    if case.recipe != "needle":
        return 0.0
    return (math.log(max(keys, 2)) + (1 + _NEEDLE_NOISE**2) / 2) / (_scale(case) * strength)


def _borders(case: EncoderAttentionCase, number: int, keys: int) -> list[int]:
    """Ends of a sequence, and of some tiles in it."""
    if not keys:
        return []
    ends = [place - side for tile in _TILES for place in (tile, keys // tile * tile) for side in (0, 1)]
    inside = sorted({place for place in ends if 0 <= place < keys})
    some = Stream(case.seed, f"needles of {number}").integers(0, len(inside), _CHOSEN) if inside else []
    return sorted({0, keys - 1, *(inside[place] for place in some)})


def coordinates(inputs: EncoderAttentionInputs, output: str) -> Mapping[str, torch.Tensor]:
    """Return integer tensors that broadcast to ``output`` or ``lse``; a row of padding is nowhere."""
    total, heads, dim = inputs.query.shape
    named = {name: torch.full((total,), NOWHERE) for name in ("sequence", "row", "rows", "keys")}
    for number, (own, keys) in enumerate(zip(spans(inputs.query_lengths), inputs.kv_lengths, strict=True)):
        count = own.stop - own.start
        for name, numbers in zip(named, (number, torch.arange(count), count, keys), strict=True):
            named[name][own] = numbers
    more = (1,) * (2 if output == "output" else 1)
    found = {name: value.view(-1, *more) for name, value in named.items()}
    found["head"] = torch.arange(heads).view(1, -1, *more[1:])
    return found | ({"dim": torch.arange(dim).view(1, 1, -1)} if output == "output" else {})


def _of_sequences(
    inputs: EncoderAttentionInputs, case: EncoderAttentionCase, order: Sequence[int]
) -> Changed[EncoderAttentionInputs]:
    """Some of the sequences, in an order, without padding."""
    own, seen = (_places(lengths, order) for lengths in (inputs.query_lengths, inputs.kv_lengths))
    changed = replace(
        inputs, query=inputs.query[own], key=inputs.key[seen], value=inputs.value[seen],
        query_lengths=tuple(inputs.query_lengths[one] for one in order),
        kv_lengths=tuple(inputs.kv_lengths[one] for one in order),
    )  # fmt: skip
    other = replace(case, sequences=tuple(case.sequences[one] for one in order), padded_rows=0)
    return Changed(changed, rows_taken(own), case=other)


def _places(lengths: Sequence[int], order: Sequence[int]) -> list[int]:
    where = spans(lengths)
    return [place for one in order for place in range(where[one].start, where[one].stop)]


def _other_order(inputs: EncoderAttentionInputs, case: EncoderAttentionCase) -> Changed[EncoderAttentionInputs]:
    """Sequences in another order."""
    return _of_sequences(inputs, case, Stream(case.seed, "order").permutation(case.batch))


def _alone(inputs: EncoderAttentionInputs, case: EncoderAttentionCase) -> Changed[EncoderAttentionInputs]:
    """One of the sequences without the others."""
    with_rows = [number for number, one in enumerate(case.sequences) if one.query]
    if not with_rows:
        raise NotApplicable("no sequence has rows")
    (place,) = Stream(case.seed, "alone").integers(0, len(with_rows), 1)
    return _of_sequences(inputs, case, [with_rows[place]])


def _permuted(case: EncoderAttentionCase, name: str, lengths: Sequence[int], padded: int) -> list[int]:
    """Places of all tokens after those of each sequence were given another order; padding stays."""
    order = [
        own.start + place
        for number, own in enumerate(spans(lengths))
        for place in Stream(case.seed, f"{name} of {number}").permutation(own.stop - own.start)
    ]
    return [*order, *range(len(order), len(order) + padded)]


def _keys_permuted(inputs: EncoderAttentionInputs, case: EncoderAttentionCase) -> EncoderAttentionInputs:
    """Keys of each sequence in another order, and its values with them."""
    order = _permuted(case, "keys", inputs.kv_lengths, case.padded_rows)
    return replace(inputs, key=inputs.key[order], value=inputs.value[order])


def _rows_permuted(inputs: EncoderAttentionInputs, case: EncoderAttentionCase) -> Changed[EncoderAttentionInputs]:
    """Rows of each sequence in another order."""
    order = _permuted(case, "rows", inputs.query_lengths, case.padded_rows)
    return Changed(replace(inputs, query=inputs.query[order]), rows_taken(order))


def _padded_heads(inputs: EncoderAttentionInputs, case: EncoderAttentionCase) -> Changed[EncoderAttentionInputs]:
    """Zeros behind the elements of each head; the scale stays."""
    dim = case.head_dim
    query, key, value = (torch.nn.functional.pad(one, (0, 8)) for one in (inputs.query, inputs.key, inputs.value))

    def cut(outputs: Outputs) -> Outputs:
        return {name: one[..., :dim] if name == "output" else one for name, one in outputs.items()}

    wider = replace(inputs, query=query, key=key, value=value)
    return Changed(wider, part=cut, case=replace(case, head_dim=dim + 8))


component = Component(
    name="encoder_attention",
    summary="attention of encoders over packed sequences: no mask, no pages, each sequence by itself",
    case_type=EncoderAttentionCase,
    outputs=("output", "lse"),
    inputs=build_inputs,
    reference=encoder_attention,
    illegal=(
        wrong_element("a negative number of rows", "query_lengths", constant(-1)),
        wrong_element("a negative number of keys", "kv_lengths", constant(-1)),
        wrong_element("more rows than there are", "query_lengths", lambda inputs: len(inputs.query) + 1),
        wrong_element("more keys than there are", "kv_lengths", lambda inputs: len(inputs.key) + 1),
    ),
    coordinates=coordinates,
    highlighted_region="several sequences",
    relations=(
        relation("order_does_not_matter", "the order of sequences does not matter", _other_order,
                 within={"batch": range(2, 4097)}),
        relation("company_does_not_matter", "a sequence's company does not matter", _alone,
                 within={"batch": range(2, 4097)}),
        relation("key_order_does_not_matter", "the order of keys, with their values, does not matter", _keys_permuted,
                 within={"kv_length": range(2, 2**17 + 1)}),
        relation("row_order_does_not_matter", "the order of rows does not matter", _rows_permuted,
                 within={"query_length": range(2, 2**17 + 1)}),
        relation("padded_heads_change_nothing", "zeros behind the elements of heads change nothing", _padded_heads,
                 within={"head_dim": range(1, 1017)}),
    ),
    example_ratio=0.7,
    baselines=BASELINES["encoder_attention"],
)  # fmt: skip
