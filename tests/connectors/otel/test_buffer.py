from cascade.connectors.otel.buffer import Buffer, Counters, QueuedItems, count_sent


def test_a_buffer_counts_its_items_and_bytes_until_they_are_completed() -> None:
    counters = Counters()
    buffer = Buffer(capacity=1_000, batch_size=4)
    assert buffer.add(QueuedItems([b"first"], 100, counters, put_at=0.0))
    for _ in range(5):
        if not buffer.append(b"next", 100, counters):
            assert buffer.add(QueuedItems([b"next"], 100, counters, put_at=0.0))
    assert (buffer.queued, buffer.queued_size, buffer.size) == (6, 600, 600)
    assert buffer.is_above_low_watermark
    assert not buffer.is_full
    batch = buffer.take(4, size=1_000)
    assert (batch.count, buffer.queued, buffer.queued_size, buffer.size) == (4, 2, 200, 600)
    for half in buffer.split(batch):
        count_sent(half.entries)
        buffer.complete(half)
    assert (buffer.in_flight, buffer.queued, buffer.size) == ([], 2, 200)
    counters.put = 6
    buffer.discard("closed")
    assert (buffer.queued, buffer.queued_size, buffer.size) == (0, 0, 0)
    assert (counters.sent, counters.lost, counters.pending) == (4, 2, 0)
