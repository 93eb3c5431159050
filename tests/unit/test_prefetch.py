"""Batches are fetched ahead, in their order, and errors come where their batch would."""

import threading

import pytest

from data_pipeline.errors import UserError
from shortcut_tpu.training.prefetch import Prefetch


def test_they_come_in_order_and_end_once():
    with Prefetch(iter(range(5)), lambda batch: 10 * batch) as batches:
        assert list(batches) == [0, 10, 20, 30, 40]
        with pytest.raises(StopIteration):
            next(batches)


def test_the_next_ones_are_under_way_and_no_more():
    asked, enough = [], threading.Semaphore(0)

    def put(batch):
        asked.append(batch)
        enough.release()
        return batch

    with Prefetch(iter(range(100)), put, depth=2) as batches:
        # Two that wait to be taken, and one that waits for a place.
        for _ in range(3):
            assert enough.acquire(timeout=10)
        assert not enough.acquire(timeout=0.3)
        assert next(batches) == 0
        assert enough.acquire(timeout=10)
    assert asked == [0, 1, 2, 3]


def test_an_error_comes_where_its_batch_was_due():
    def records():
        yield 1
        raise UserError("a damaged record")

    with Prefetch(records(), lambda batch: batch) as batches:
        assert next(batches) == 1
        for _ in range(2):
            with pytest.raises(UserError, match="a damaged record"):
                next(batches)


def test_leaving_early_ends_the_thread():
    with Prefetch(iter(range(100)), lambda batch: batch) as batches:
        next(batches)
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}
