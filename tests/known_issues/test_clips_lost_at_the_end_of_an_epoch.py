"""With several buckets, an epoch could end while one of them still held clips: they were not learnt from."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.unit.test_training_batches import PLAIN, names, plan, row


@pytest.mark.parametrize("join", [0.0, 0.5])
def test_every_clip_of_many_buckets_is_heard_once(join: float) -> None:
    rows = [row(number, 0.5 + number % 50 / 10) for number in range(200)]
    made = plan(rows, replace(PLAIN, join_share=join))
    assert len(made.bins) >= 2
    for epoch in range(10):
        counts = Counter(id for batch in names(list(made.epoch(epoch))) for id in batch)
        assert counts == {r.id: 1 for r in rows}
