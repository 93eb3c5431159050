"""A folder that has no locks is held by one run at a time."""

import json
import threading
import time

from etils import epath
import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.runs.lease import Lease


def lease(folder, owner, **options):
    return Lease(epath.Path(folder), owner, beat_seconds=0.05, settle_seconds=0.02, **options)


def test_the_second_run_refuses_while_the_first_lives(tmp_path):
    with (
        lease(tmp_path, "first"),
        pytest.raises(UserError, match=r"another run is using this workdir \(process \d+ on "),
        lease(tmp_path, "second"),
    ):
        raise AssertionError("both have it")
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_died_holds_nobody(tmp_path, capfd):
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({"owner": "dead", "host": "h", "process": 7, "beat": 3}))
    with lease(tmp_path, "next"):
        assert json.loads(path.read_text())["owner"] == "next"
    assert "was held by process 7 on h" in capfd.readouterr().err


def test_a_run_that_is_started_again_goes_on_at_once(tmp_path, capfd):
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({"owner": "run", "host": "h", "process": 7, "beat": 3}))
    with lease(tmp_path, "run"):
        pass
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_half_a_file_is_no_claim(tmp_path, content):
    (tmp_path / "lease.json").write_text(content)
    with lease(tmp_path, "run"):
        assert json.loads((tmp_path / "lease.json").read_text())["owner"] == "run"


def test_of_two_that_start_together_at_most_one_goes_on(tmp_path):
    started, refused = [], []

    def start(owner):
        try:
            with lease(tmp_path, owner, on_lost=refused.append):
                started.append(owner)
                time.sleep(0.3)
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=start, args=(f"run {i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) >= 1
    assert len(started) + len(refused) >= 2


class Unavailable(Exception):
    """Derived from no OSError, as TensorFlow's errors are."""


def test_a_bucket_that_fails_for_a_while_does_not_lose_the_lease(tmp_path, monkeypatch):
    with lease(tmp_path, "run") as held:
        read, asked = held._read, threading.Semaphore(0)

        def fails():
            asked.release()
            raise Unavailable

        monkeypatch.setattr(held, "_read", fails)
        assert asked.acquire(timeout=5) and asked.acquire(timeout=5)
        monkeypatch.setattr(held, "_read", read)
        before = json.loads((tmp_path / "lease.json").read_text())["beat"]
        deadline = time.monotonic() + 5
        while held._beats <= before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held._beats > before


def test_a_run_whose_folder_was_taken_is_told(tmp_path):
    lost = []
    with lease(tmp_path, "first", on_lost=lost.append):
        (tmp_path / "lease.json").write_text(json.dumps({"owner": "other", "process": 1}))
        deadline = time.monotonic() + 5
        while not lost and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "another run is using this workdir" in lost[0]
    # The other's claim stands.
    assert json.loads((tmp_path / "lease.json").read_text())["owner"] == "other"
