"""What /metrics shows, in Prometheus' text form; each server has figures of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server."""

    def __init__(self, sessions: Callable[[], float], session_bytes: Callable[[], float]) -> None:
        """Takes what tells how many sessions are open, and what memory they hold."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, processor time, open files
        self._requests = Counter(
            "earn_requests", "Requests by route and status.", ("route", "status"), registry=self._registry
        )
        self._seconds = Histogram(
            "earn_request_seconds", "Time of a request.", ("route",), buckets=SECONDS, registry=self._registry
        )
        self._batches = Histogram(
            "earn_batch_requests", "Requests that one pass answered.", buckets=SIZES, registry=self._registry
        )
        self.running = Gauge("earn_requests_running", "Requests waiting or being answered.", registry=self._registry)
        self.swaps = Counter("earn_swaps", "Swaps of a bundle.", ("bundle", "kind"), registry=self._registry)
        for name, text, value in (
            ("earn_sessions", "Open sessions.", sessions),
            ("earn_session_bytes", "Memory of the caches of open sessions.", session_bytes),
        ):
            Gauge(name, text, registry=self._registry).set_function(value)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts a finished request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, size: int) -> None:
        """Counts a batch of so many requests."""
        self._batches.observe(size)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)
