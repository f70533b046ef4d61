"""A corpus that campaigns have in common: in a folder, and in file systems of fsspec."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from killed import killed_after
from npudiff.campaign import corpus as corpora
from npudiff.campaign.corpus import Corpus, digest
from npudiff.campaign.known import Knowledge
from npudiff.campaign.loop import Campaign
from npudiff.campaign.rounds import CardLost, Ended, round_of, task_of
from npudiff.campaign.store import FolderStore, UrlStore, store_of
from npudiff.errors import ExitCode, UsageError
from npudiff.model.job import Failure, Outcome
from npudiff.run.plan import Plan, Request

pytest.importorskip("fsspec", reason="needs fsspec: pip install 'npudiff[fsspec]'")

PLACES = ["folder", "file", "memory", "dir"]
CASE = '{{"numbers":[{}],"kind":"plain"}}'


@pytest.fixture(params=PLACES)
def place(request, tmp_path):
    """A place that is empty, as it is named on the command line."""
    return {
        "folder": str(tmp_path / "common"),
        "file": f"file://{tmp_path}/common",
        "memory": f"memory://{secrets.token_hex(8)}/common",
        "dir": f"dir::file://{tmp_path}/common",
    }[request.param]


def whole(store):
    """The cases that lie in a store, by job; each object is what its name says."""
    found = {}
    for name, data in store.read(store.sizes()):
        assert hashlib.sha256(data).hexdigest()[:32] == name.split(".")[-2], name
        content = json.loads(data)
        found.setdefault(content["job"], []).extend(content["cases"])
    return found


def opened(store, jobs=("a.b.c",), findings=()):
    knowledge = Knowledge("here 0")
    return knowledge, Corpus(store, jobs, knowledge, lambda: findings)


def learned(knowledge, *cases, job="a.b.c"):
    known = knowledge.of(job)
    known.corpus.update({(f"region of {case}",): case for case in cases})


def test_an_object_is_there_when_it_is_whole(place):
    store = store_of(place)
    assert isinstance(store, UrlStore if "://" in place else FolderStore)
    assert not store.sizes()
    store.write("a.json", b"12345")
    store.write("b.json", b"678")
    assert store.sizes() == {"a.json": 5, "b.json": 3}
    assert dict(store.read({"a.json": 5, "b.json": 3, "gone.json": 3})) == {
        "a.json": b"12345", "b.json": b"678", "gone.json": None,
    }  # fmt: skip


@pytest.mark.parametrize("place", ["file", "memory"], indirect=True)
def test_of_an_object_that_cannot_be_finished_nothing_is_seen(place, monkeypatch):
    store = store_of(place)
    knowledge, corpus = opened(store)
    learned(knowledge, "one")

    def away(*_, **__):
        raise ConnectionResetError("the network is away")

    monkeypatch.setattr(type(store._files), "mv", away)
    corpus.keep(now=True)
    assert "the network is away" in corpus.problem
    assert not store.sizes()
    assert not corpus.added
    monkeypatch.undo()
    corpus.keep(now=True)
    assert not corpus.problem
    assert whole(store) == {"a.b.c": ["one"]}


def test_what_others_wrote_is_given_once_and_not_written_again(place):
    store = store_of(place)
    ours, first = opened(store)
    learned(ours, "one", "two")
    first.keep(now=True)
    theirs, second = opened(store_of(place))
    second.read()
    assert second.waiting == 2
    assert second.first("a.b.c") == ("one", "two")
    assert second.first("a.b.c") == ()
    theirs.of("a.b.c").taken |= {digest("one"), digest("two")}
    learned(theirs, "one", "three")
    second.keep(now=True)
    assert sorted(whole(store)["a.b.c"]) == ["one", "three", "two"]
    first.read()
    assert first.first("a.b.c") == ("three",)
    _, third = opened(store)
    third._knowledge.of("a.b.c").taken.add(digest("two"))
    third.read()
    assert sorted(third.first("a.b.c")) == ["one", "three"]


def test_what_is_in_the_log_and_not_there_is_written_at_the_next_start(place):
    store = store_of(place)
    found = SimpleNamespace(job="a.b.c", key="finding", case={"fails": 1})
    knowledge, corpus = opened(store, findings=[found])
    learned(knowledge, "one")
    knowledge.of("a.b.c").guides.append("guide")
    knowledge.of("a.b.c").worst_case = "largest"
    corpus.read()
    corpus.write()
    assert sorted(whole(store)["a.b.c"]) == ["guide", "largest", "one", '{"fails":1}']
    before = store.sizes()
    corpus.write()
    _, again = opened(store, findings=[found])
    again._knowledge.jobs.update(knowledge.jobs)
    again.read()
    again.write()
    assert store.sizes() == before
    assert not again.waiting


def test_what_is_no_object_of_ours_is_left_out_and_counted(tmp_path):
    folder = tmp_path / "common"
    store = FolderStore(folder)
    knowledge, corpus = opened(store)
    learned(knowledge, "one")
    corpus.write()
    (good,) = store.sizes()
    data = (folder / good).read_bytes()
    (folder / f"a.b.c.{'0' * 32}.json").write_bytes(data)
    (folder / f"a.b.c.{'1' * 32}.json").write_bytes(data[:-3])
    (folder / f"a.b.c.{'2' * 32}.json").symlink_to(folder / good)
    (folder / f"a.b.c.{'3' * 32}.json").write_bytes(b"")
    for content in (
        b"[" * 100_000,
        b'{"format":1,"job":"a.b.c","cases":[1]}',
        b'{"format":2,"job":"a.b.c","cases":[]}',
    ):
        (folder / f"a.b.c.{hashlib.sha256(content).hexdigest()[:32]}.json").write_bytes(content)
    with (folder / f"a.b.c.{'4' * 32}.json").open("wb") as file:
        file.truncate(corpora.LARGEST + 1)
    (folder / f"other.{'5' * 32}.json").write_bytes(b"of a job that this campaign has not")
    (folder / "README.md").write_text("somebody's")
    _, other = opened(store)
    other.read()
    assert other.first("a.b.c") == ("one",)
    assert other.unread == 7
    other.read()
    assert other.unread == 7


def test_many_cases_are_several_objects_none_of_which_is_too_large(tmp_path):
    store = FolderStore(tmp_path / "common")
    knowledge, corpus = opened(store)
    cases = [f"{number:06}" + "x" * 4000 for number in range(400)] + ["y" * corpora.LARGEST]
    learned(knowledge, *cases)
    corpus.write()
    assert max(store.sizes().values()) <= corpora.LARGEST
    assert len(store.sizes()) > 1
    assert sorted(whole(store)["a.b.c"]) == cases[:-1]


def test_without_fsspec_a_folder_works_and_a_url_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    store_of(str(tmp_path / "common")).write("a.json", b"1")
    with pytest.raises(UsageError, match=r"pip install 'npudiff\[fsspec\]'"):
        store_of("memory://common")


def test_a_url_that_cannot_be_opened_is_told_without_its_password():
    with pytest.raises(UsageError, match="strange://host/folder: ValueError") as told:
        store_of("strange://user:secret@host/folder")
    assert "secret" not in str(told.value)
    assert store_of("memory://user:secret@host").where == "memory://host"


def test_a_folder_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="a link"):
        store_of(str(tmp_path / "link"))


@pytest.fixture
def running(toy, tmp_path):
    """A campaign of one job, whose corpus has three cases of others."""
    job = toy.job()
    theirs, corpus = opened(FolderStore(tmp_path / "common"), [job.name])
    learned(theirs, *map(CASE.format, (1, 2, 3)), job=job.name)
    corpus.write()
    plan = Plan(job.subject.target, (job,), (), Request(isolate=False))
    knowledge, mine = opened(FolderStore(tmp_path / "common"), [job.name])
    mine.read()
    entries = []
    log = SimpleNamespace(add=lambda kind, **entry: entries.append(entry))
    causes = SimpleNamespace(told=lambda kept, region: [])
    return SimpleNamespace(campaign=Campaign(plan, knowledge, causes, log, corpus=mine), job=job, entries=entries)


def test_cases_of_others_come_first_in_a_round_and_are_run_once(running):
    campaign, job = running.campaign, running.job
    (one,) = campaign._next(1, 0)
    assert one.first == tuple(map(CASE.format, (1, 2, 3)))
    assert task_of(campaign.plan, one, None, None).job.name == job.name
    assert task_of(campaign.plan, one, None, None).budget.explicit_cases == one.first
    campaign._take(Ended(one, Outcome(job, cases=9, seconds=1.0), (), cut=False))
    assert running.entries[0]["taken"] == [digest(text) for text in one.first]
    assert campaign.corpus.taken == 3
    assert not campaign.corpus.waiting


def test_after_a_case_that_fails_the_next_round_runs_those_behind_it(running):
    campaign, job = running.campaign, running.job
    (one,) = campaign._next(1, 0)
    case = job.subject.component.case_type(numbers=(2,), kind="plain")
    outcome = Outcome(job, cases=2, seconds=1.0)
    outcome.first_failure = Failure(case, None, None)
    campaign._take(Ended(one, outcome, (), cut=False))
    assert running.entries[0]["taken"] == [digest(text) for text in one.first[:2]]
    campaign.knowledge.of(job.name).cases = 2
    assert campaign._next(1, 1)[0].first == one.first[2:]


def test_a_round_that_was_cut_or_lost_gives_its_cases_back(running):
    campaign, job = running.campaign, running.job
    (one,) = campaign._next(1, 0)
    campaign._take(Ended(one, Outcome(job, cases=1, seconds=1.0), (), cut=True))
    assert running.entries[0]["taken"] == []
    assert campaign.corpus.waiting == 3
    (one,) = campaign._next(1, 0)
    campaign._take(Ended(one, Outcome(job, cases=0), (), cut=True))
    assert campaign.corpus.waiting == 3
    (one,) = campaign._next(1, 0)
    assert not campaign.corpus.waiting
    campaign._landed(CardLost("3", "no answer", one))
    assert campaign.corpus.waiting == 3


def test_a_round_with_cases_of_others_is_the_same_as_text(toy):
    from npudiff.campaign.cluster import round_from_text, round_to_text

    one = replace(round_of("name", toy.job(), 3), first=("a", "b"))
    assert round_from_text(round_to_text(one), {one.job.name: one.job}) == one


def rounds(log):
    return [entry for entry in log if entry["kind"] == "round"]


@pytest.mark.slow
def test_a_campaign_begins_with_what_another_one_found(campaign, tmp_path, place):
    def searched():
        """Search until something is found, which takes a while where much else runs."""
        results = (campaign("swa_mask", "--corpus", place, time=f"{seconds}s") for seconds in (2, 8, 32, 64))
        return next(result for result in results if result.found)

    first = searched()
    assert first.code == ExitCode.FINDINGS
    assert f"corpus {place}: " in first.out
    assert not any(entry["taken"] for entry in rounds(first.log))
    (tmp_path / "kept").rename(tmp_path / "first")
    second = searched()
    (entry,) = [
        e for e in rounds(second.log) if (e["job"], e["number"], e["cut"]) == ("swa_mask.bad.equivalence", 0, False)
    ]
    assert entry["taken"]
    assert entry["found"]
    texts = [digest(text) for text in whole(store_of(place))["swa_mask.bad.equivalence"]]
    assert set(entry["taken"]) <= set(texts)
    assert len(set(texts)) == len(texts)
    third = campaign("swa_mask", "--corpus", place, "--json", "told.json", time="1s")  # goes on
    later = [
        key for e in rounds(third.log)[len(rounds(second.log)) :] for key in e["taken"] if e["job"] == entry["job"]
    ]
    assert not set(entry["taken"]) & set(later)
    told = json.loads((tmp_path / "told.json").read_text())["campaign"]["corpus"]
    assert told["where"] == place
    assert told["unread"] == 0


@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_corpus_that_cannot_be_read_ends_a_campaign_before_it_begins(campaign, place, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def away(*_, **__):
        raise ConnectionRefusedError("nobody is there")

    monkeypatch.setattr(MemoryFileSystem, "ls", away)
    result = campaign("swa_mask", "--corpus", place)
    assert result.code == ExitCode.USAGE
    assert "nobody is there" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_corpus_that_is_lost_later_is_told_and_ends_nothing(campaign, place, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    def away(*_, **__):
        raise ConnectionResetError("the network is away")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", away)
    result = campaign("swiglu", "--corpus", place, impl="npu_swiglu", time="1s")
    assert result.code == ExitCode.USAGE
    assert rounds(result.log)
    assert "could not be written: the corpus: memory://" in result.err
    assert "the network is away" in result.err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # it is forked: torch's threads are not used
@pytest.mark.parametrize("place", ["folder", "file"], indirect=True)
@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_killed_campaign_leaves_whole_objects_and_writes_the_rest_later(kills, campaign, tmp_path, place):
    campaign("swa_mask", "--corpus", place, time="1s")  # everything is imported
    arguments = ["campaign", "swa_mask", "--impl", "mine.py", "--target", "sim", "--no-isolate", "-j", "2"]
    arguments += ["--output", "kept", "--batch", "20", "--corpus", place]
    draw = random.Random(5)  # noqa: S311 - any moments will do
    for _ in range(kills):
        killed_after(draw.uniform(0.05, 1.5), arguments, tmp_path)
        whole(store_of(place))
    result = campaign("swa_mask", "--corpus", place, time="1s")
    there = {digest(text) for texts in whole(store_of(place)).values() for text in texts}
    assert there
    assert {digest(case) for entry in rounds(result.log) for _, case in entry["new"]} <= there
