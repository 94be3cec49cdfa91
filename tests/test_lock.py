"""The mark of a run in its folder: one holds it, the dead lose it, and of two at once never both have it."""

import json
import logging
import subprocess
import sys
import threading

import pytest
from etils import epath

from cmjax.system import lock
from cmjax.system.lock import MARK, AlreadyRunning, FolderLock, process_start, release_all, this_process

PLACES = {"disk": lambda path: path, "bucket": epath.Path}
"""An epath is handled as a bucket's, wherever it leads."""


@pytest.fixture(autouse=True)
def two_write_at_nearly_the_same_moment(monkeypatch):
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.05)


@pytest.fixture(params=PLACES)
def folder(request, tmp_path):
    return PLACES[request.param](tmp_path / "run")


def lock_on(folder, on_lost=lambda: None):
    return FolderLock(folder, on_lost=on_lost, beat_seconds=0.05, silent_seconds=0.4)


def write_mark(folder, **changes):
    """The mark of a process that is no more."""
    folder.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        start = process_start(process.pid)
    mark = this_process() | {"token": "x", "pid": process.pid, "process_start": start} | changes
    (folder / MARK).write_text(json.dumps(mark))


def test_a_second_is_refused_by_name_until_the_first_has_ended(folder):
    first = lock_on(folder)
    first.take()
    mark = json.loads((folder / MARK).read_text())
    with lock_on(folder) as second, pytest.raises(AlreadyRunning) as refused:
        second.take()
    assert f"process {mark['pid']} on {mark['host']} runs there since {mark['started']}" in str(refused.value)
    assert (folder / MARK).exists()
    first.release()
    with lock_on(folder) as third:
        third.take()
        (folder / "config.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_run_that_wrote_nothing_leaves_no_folder(tmp_path):
    lock_on(tmp_path / "run").take()
    release_all()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{}, {"place": ["another", "machine"]}, {"pid": 1}])
def test_the_mark_of_a_dead_process_is_taken_over(folder, changes, caplog):
    """Gone, silent elsewhere, or its number given to another process by now."""
    write_mark(folder, **changes)
    with caplog.at_level(logging.INFO), lock_on(folder) as taken:
        taken.take()
        assert caplog.text.count("is dead; going on") == 1
        assert [path.name for path in folder.iterdir()] == [MARK]


def test_the_mark_of_a_process_elsewhere_that_lives_is_respected(folder, monkeypatch):
    first, second = lock_on(folder), lock_on(folder)
    first.take()
    second._mark["place"] = ["another", "machine"]
    with first, pytest.raises(AlreadyRunning):
        second.take()


def test_a_file_that_is_no_mark_is_waited_for_and_replaced(folder):
    folder.mkdir()
    (folder / MARK).write_text("{")
    with lock_on(folder) as taken:
        taken.take()
        assert taken._is_mine()


def test_who_was_taken_over_is_told(folder):
    told = threading.Event()
    with lock_on(folder, on_lost=told.set) as taken:
        taken.take()
        write_mark(folder)
        assert told.wait(5)
    assert (folder / MARK).exists()


def test_of_many_at_once_one_takes_over(tmp_path):
    for _ in range(20):
        write_mark(tmp_path)
        locks, refused = [lock_on(tmp_path) for _ in range(6)], []
        start = threading.Barrier(len(locks))

        def race(taken, start=start, refused=refused):
            start.wait()
            try:
                taken.take()
            except AlreadyRunning:
                refused.append(taken)

        threads = [threading.Thread(target=race, args=(taken,)) for taken in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = set(locks) - set(refused)
        assert winner._is_mine()
        winner.release()
        assert list(tmp_path.iterdir()) == []
