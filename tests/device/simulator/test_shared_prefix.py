"""``key_shared_prefix`` and ``value_shared_prefix`` of fused attention: the keys that all sequences begin with."""

import math

import pytest
import torch

from npudiff.device.simulator import OperatorRejected

PREFIX = 5
LAYOUTS = ["BSH", "BSND", "BNSD", "BNSD_BSND"]


def with_prefix(lab, query_lengths, key_lengths, layout, *, room=PREFIX, **more):
    """Return a call whose sequences have a prefix, and the sequences with it; NaN lies where nothing may be read."""
    whole = lab.ragged(query_lengths, [PREFIX + length for length in key_lengths], **more)
    for part in (whole.keys, whole.values):
        for other in part[1:]:
            other[:, :PREFIX] = part[0][:, :PREFIX]
    cut = [[one[:, PREFIX:] for one in part] for part in (whole.keys, whole.values)]
    own = type(whole)(whole.queries, *cut)
    arguments = lab.pack(own, layout, version=1)
    padding = torch.full((whole.kv_heads, room - PREFIX, 64), math.nan, dtype=whole.queries[0].dtype)
    for name, part in (("key_shared_prefix", whole.keys), ("value_shared_prefix", whole.values)):
        prefix = torch.cat((part[0][:, :PREFIX], padding), 1).unsqueeze(0)
        if layout[:4] != "BNSD":
            prefix = prefix.transpose(1, 2)
        arguments[name] = (prefix.flatten(2) if layout == "BSH" else prefix).contiguous()
    return arguments, whole


def check(lab, arguments, whole, layout, visible):
    lengths = [one.shape[1] for one in whole.queries]
    output, lse = lab.call(arguments, version=1)
    if layout == "BSH":
        output = output.unflatten(2, (whole.heads, -1))
    got = lab.unpack(output, "BSND" if layout == "BSH" else layout, lengths), lab.unpack_lse(lse, layout, lengths)
    for number, (one, its_lse) in enumerate(zip(*got, strict=True)):
        query, key, value = whole.queries[number], whole.keys[number], whole.values[number]
        wanted, bound, wanted_lse = lab.exact(query, key, value, visible(query, key), scale=whole.scale)
        assert ((one.double() - wanted).abs() <= bound).all()
        torch.testing.assert_close(its_lse.double(), wanted_lse, rtol=1e-5, atol=1e-5)


def everything(query, key):
    return torch.ones(query.shape[1], key.shape[1], dtype=torch.bool)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_stands_before_the_keys_of_each_sequence(lab, layout, dtype):
    arguments, whole = with_prefix(lab, [3, 4], [8, 600], layout, dtype=dtype)
    check(lab, arguments, whole, layout, everything)


def test_one_query(lab):
    arguments, whole = with_prefix(lab, [1, 1], [0, 7], "BNSD")
    check(lab, arguments, whole, "BNSD", everything)


def test_only_its_actual_length_is_read(lab):
    arguments, whole = with_prefix(lab, [3, 4], [8, 9], "BSND", room=PREFIX + 2)
    arguments["actual_shared_prefix_len"] = [PREFIX]
    check(lab, arguments, whole, "BSND", everything)
    del arguments["actual_seq_lengths_kv"]
    with_nothing_to_skip, whole = with_prefix(lab, [3, 4], [9, 9], "BSND")
    del with_nothing_to_skip["actual_seq_lengths_kv"]
    check(lab, with_nothing_to_skip, whole, "BSND", everything)


@pytest.mark.parametrize("mode", [3, 4])
def test_bands_and_masks_count_it(lab, mode):
    arguments, whole = with_prefix(lab, [3, 4], [8, 9], "BNSD")
    band = {"pre_tokens": 2, "next_tokens": 0} if mode == 4 else {}
    arguments |= {"sparse_mode": mode, "atten_mask": lab.template(), **band}

    def visible(query, key):
        rows, keys = query.shape[1], key.shape[1]
        shown = torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows)
        return shown.triu(keys - rows - 2) if mode == 4 else shown

    check(lab, arguments, whole, "BNSD", visible)


def test_a_whole_mask_has_its_columns(lab):
    arguments, whole = with_prefix(lab, [4, 4], [9, 9], "BNSD")
    mask = torch.zeros(2, 1, 4, PREFIX + 9, dtype=torch.bool)
    mask[..., 1::2] = True
    arguments |= {"sparse_mode": 1, "atten_mask": mask}
    check(lab, arguments, whole, "BNSD", lambda *_: ~mask[0, 0])


@pytest.mark.parametrize(
    ("spoil", "argument"),
    [
        ({"value_shared_prefix": None}, "value_shared_prefix"),
        ({"key_shared_prefix": None}, "key_shared_prefix"),
        ({"key_shared_prefix": torch.zeros(2, 2, PREFIX, 64).bfloat16()}, "key_shared_prefix"),
        ({"key_shared_prefix": torch.zeros(1, 4, PREFIX, 64).bfloat16()}, "key_shared_prefix"),
        ({"key_shared_prefix": torch.zeros(1, 2, PREFIX, 64).half()}, "key_shared_prefix"),
        ({"value_shared_prefix": torch.zeros(1, 2, PREFIX + 1, 64).bfloat16()}, "value_shared_prefix"),
        ({"value_shared_prefix": torch.zeros(1, 2, 64, PREFIX).bfloat16().mT}, "value_shared_prefix"),
        ({"actual_shared_prefix_len": [PREFIX + 1]}, "actual_shared_prefix_len"),
        ({"actual_shared_prefix_len": [1, 1]}, "actual_shared_prefix_len"),
    ],
)
def test_what_is_refused(lab, spoil, argument):
    arguments, _ = with_prefix(lab, [3, 4], [8, 9], "BNSD")
    lab.call(arguments, version=1)
    with pytest.raises(OperatorRejected, match=f": {argument} was"):
        lab.call(arguments | spoil, version=1)


def test_it_is_refused_with_pages_and_packed_sequences(lab):
    prefix = torch.zeros(1, 2, PREFIX, 64).bfloat16()
    given = {"key_shared_prefix": prefix, "value_shared_prefix": prefix}
    sequences = lab.ragged([3, 4], [8, 9])
    for arguments in (lab.pack(sequences, "BNSD", version=1, block_size=16), lab.pack(sequences, "TND", version=1)):
        with pytest.raises(OperatorRejected, match=": key_shared_prefix was given"):
            lab.call(arguments | given, version=1)
