from __future__ import annotations

import json
import os
import resource

import pytest

from npudiff.campaign.known import Knowledge
from npudiff.campaign.log import CampaignLog
from npudiff.errors import UsageError
from npudiff.files.writing import AppendedFile


def opened(root, place="sim 8.5", name=None):
    knowledge = Knowledge(place)
    return knowledge, CampaignLog(root, knowledge, name)


def test_a_log_has_a_name_that_stays(tmp_path):
    knowledge, log = opened(tmp_path)
    with log:
        assert len(knowledge.name) == 16
    again, log = opened(tmp_path, name="other")
    with log:
        assert again.name == knowledge.name


def test_a_torn_line_is_cut_off_and_the_rest_stays(tmp_path):
    knowledge, log = opened(tmp_path)
    with log:
        log.add("lost", card="3", why="no answer")
        log.add("lost", card="4", why="x" * 200_000)
    whole = log.path.read_bytes()
    for size in (len(whole) - 1, len(whole) - 150_000, len(whole) - 200_020):
        log.path.write_bytes(whole[:size])
        knowledge, log = opened(tmp_path)
        with log:
            assert knowledge.lost == [("3", "no answer")]
            assert log.path.read_bytes() == whole[: whole.rfind(b"\n", 0, len(whole) - 1) + 1]
            log.add("lost", card="5", why="")
        assert [json.loads(line)["kind"] for line in log.path.read_text().splitlines()] == ["campaign", "lost", "lost"]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[]",
        '{"kind":"strange"}',
        '{"kind":"round","place":"sim 8.5"}',
        '{"kind":"lost","place":"sim 8.5","card":1,"why":""}',
        '{"kind":"again","place":"sim 8.5","folder":"f","fails":"yes"}',
        '{"kind":["list"]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_entry_is_left_out_and_counted(line, tmp_path):
    _, log = opened(tmp_path)
    with log:
        pass
    with log.path.open("a") as file:
        file.write(line + "\n")
    _, log = opened(tmp_path)
    with log:
        assert log.unread == 1


def test_a_newer_log_and_a_link_are_refused(tmp_path):
    _, log = opened(tmp_path)
    with log:
        pass
    log.path.write_text(log.path.read_text().replace('"format":1', '"format":2'))
    with pytest.raises(UsageError, match="newer npudiff"):
        opened(tmp_path)
    log.path.rename(tmp_path / "elsewhere")
    log.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"log\.jsonl"):
        opened(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits a process of its own")
def test_a_line_that_does_not_fit_on_the_disk_is_not_there_at_all(tmp_path):
    path = tmp_path / "file"
    child = os.fork()
    if not child:
        file = AppendedFile(path, within=tmp_path)
        file.append("first")
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            file.append("x" * 1000)
        except OSError:
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert path.read_text() == "first\n"
