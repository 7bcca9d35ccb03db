"""One writer at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from stainseq import store
from stainseq.errors import StoreError
from stainseq.store import lock

HOLD = """
import sys, time
from pathlib import Path
from stainseq.store.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(stored):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(stored.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_the_first_one_named(stored, other, make_element):
    with pytest.raises(StoreError, match=f"process {other.pid} on .* is writing to this store.*wait"):
        store.write_element(stored, "spots", make_element("shapes"), step="x", parameters={})
    assert lock.holder(stored.path)["pid"] == other.pid
    assert f"process {other.pid}" in store.problems(stored.path)[0]
    stage = stored.path.with_name(f".s.zarr-{'c' * 32}")
    stage.mkdir()
    assert "he" in store.open(stored.path)  # reading goes on, and what the writer is doing is left alone
    assert stage.exists()
    with pytest.raises(StoreError, match="is writing"):
        store.repair(stored.path)


def test_the_lock_of_a_dead_process_holds_nobody_up(stored, other, make_element):
    other.kill()
    other.wait()
    assert lock.lock_file(stored.path).exists()
    assert lock.holder(stored.path) is None
    store.write_element(stored, "spots", make_element("shapes"), step="x", parameters={})
    assert not lock.lock_file(stored.path).exists()


def test_opening_clears_the_lock_file_of_a_dead_process(stored):
    lock.lock_file(stored.path).write_text('{"pid": 1, "host": "elsewhere"}')
    store.open(stored.path)
    assert not lock.lock_file(stored.path).exists()


def test_a_second_thread_is_refused(stored):
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with lock.locked(stored.path):
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(30)
    try:
        with pytest.raises(StoreError, match=f"process {os.getpid()}"):
            store.set_facts(stored, patient="P")
        assert lock.holder(stored.path)["pid"] == os.getpid()
    finally:
        leave.set()
        thread.join()
    store.set_facts(stored, patient="P")


def test_many_processes_one_at_a_time(tmp_path):
    """The lock excludes, also while its file comes and goes."""
    code = """
import os, sys, time
from pathlib import Path
from stainseq.errors import StoreError
from stainseq.store.lock import locked
path, inside, done = Path(sys.argv[1]), Path(sys.argv[2]), 0
while done < 40:
    try:
        with locked(path):
            fd = os.open(inside, os.O_CREAT | os.O_EXCL)
            os.close(fd)
            os.unlink(inside)
            done += 1
    except StoreError:
        time.sleep(0.0005)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "s.zarr"), str(tmp_path / "inside")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in running:
        assert process.communicate()[1] == ""
        assert process.returncode == 0


def test_without_record_locks(stored, monkeypatch, make_element):
    """As on Windows: the file is the lock, and that of a dead process of this host is cleared."""
    monkeypatch.setattr(lock, "fcntl", None)
    store.write_element(stored, "spots", make_element("shapes"), step="x", parameters={})
    assert not lock.lock_file(stored.path).exists()
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    host = lock.socket.gethostname()
    lock.lock_file(stored.path).write_text(f'{{"pid": {process.pid}, "host": "{host}"}}')
    store.set_facts(stored, patient="P")
    lock.lock_file(stored.path).write_text('{"pid": 1, "host": "another-host"}')
    with pytest.raises(StoreError, match="process 1 on another-host"):
        store.set_facts(stored, patient="P")
    lock.lock_file(stored.path).unlink()
