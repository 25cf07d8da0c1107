"""What benchmarks.serving makes of what it measures."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from benchmarks.serving import Client, growth, is_same, picture


def test_growth_is_that_after_the_first_minute() -> None:
    warming = [(float(second), 50.0 + second) for second in range(60)]
    steady = [(float(second), 100.0 + 0.01 * second) for second in range(60, 601)]  # 0.01 MiB/s: 36 MiB per hour
    slope, start = growth(warming + steady)
    assert slope == pytest.approx(0.01)
    assert start == pytest.approx(100.0)
    assert b"+36.0 MiB per hour" in picture(warming + steady)
    assert growth(warming)[0] == pytest.approx(1.0)  # of a short one, the second half


@pytest.mark.parametrize(
    ("got", "same"),
    [
        ([("a", -1.0), ("b", -2.0), ("c", -2.001)], True),
        ([("a", -1.0), ("c", -2.0), ("b", -2.001)], True),  # a near tie the other way round
        ([("a", -1.0), ("b", -2.0), ("d", -2.002)], True),  # as good as the last one
        ([("b", -1.0), ("a", -2.0), ("c", -2.001)], False),
        ([("a", -1.1), ("b", -2.0), ("c", -2.001)], False),
        ([("a", -1.0), ("b", -2.0)], False),
    ],
)
def test_lists_are_the_same_but_for_near_ties(got: list[tuple[str, float]], same: bool) -> None:
    assert is_same(got, [("a", -1.0), ("b", -2.0), ("c", -2.001)]) is same


def test_a_lost_connection_is_counted_and_the_client_goes_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = Client()
        until = time.perf_counter() + 0.4
        asking = threading.Thread(target=client.ask, args=(server.getsockname()[1], [b"{}"], [[]], until, 0))
        asking.start()
        for _ in range(2):  # a client waits HOLD_S after a loss
            server.accept()[0].close()
        asking.join()
    assert sum(client.other.values()) == 2
    assert client.ms == []
