"""The benchmark of data sources measures what a source takes."""

import time

import numpy as np

from benchmarks import data_rate
from cmjax.data.base import ArraySource


class Slow(ArraySource):
    """It takes 20 ms for a batch."""

    def gather(self, indices):
        time.sleep(0.02)
        return super().gather(indices)


def test_a_slow_source_has_the_rate_that_it_was_made_with(monkeypatch):
    monkeypatch.setattr(data_rate, "BATCHES", 10)
    images = np.zeros((50, 4, 4, 1), np.uint8)
    name, shape, speed, opened = data_rate.measured("slow", lambda: Slow(images, None, None))
    assert (name, shape) == ("slow", (4, 4, 1))
    assert data_rate.BATCH / 0.2 < speed < data_rate.BATCH / 0.019  # 20 ms, up to 200 on a busy machine
    assert opened > 0.02


def test_files_are_read_in_memory_on_demand_and_mapped(monkeypatch, tmp_path):
    monkeypatch.setattr(data_rate, "BATCHES", 2)
    monkeypatch.setattr(data_rate, "NUM_IMAGES", 40)
    rows = list(data_rate.of_files(tmp_path))
    assert [row.shape for row in rows] == [(32, 32, 3)] * 4 + [(64, 64, 3)] * 4 + [(32, 32, 3)] * 2
    assert all(row.images_per_second > 0 for row in rows)
