"""Prometheus metrics of a server."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from foldray.serving.messages import Answer, Refusal

LATENCY = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class ServerMetrics:
    """Counts requests, latencies, batches and audio. Labels have few values: depths, and codes of refusals."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter(
            "foldray_requests", "Requests by depth and outcome.", ["depth", "outcome"], registry=own
        )
        self._seconds = Histogram(
            "foldray_request_seconds",
            "Seconds from a request to its answer.",
            ["depth"],
            buckets=LATENCY,
            registry=own,
        )
        self._audio = Counter(
            "foldray_audio_seconds", "Seconds of audio that were transcribed.", ["depth"], registry=own
        )
        self._rows = Histogram(
            "foldray_batch_rows", "Clips in the batch that a clip ran in.", buckets=ROWS, registry=own
        )
        self.in_progress = Gauge("foldray_requests_in_progress", "Requests without an answer yet.", registry=own)

    def answered(self, answer: Answer, seconds: float) -> None:
        """Count a transcript."""
        depth = str(answer.transcript.depth)
        self._requests.labels(depth, "ok").inc()
        self._seconds.labels(depth).observe(seconds)
        self._audio.labels(depth).inc(answer.transcript.seconds)
        for rows in answer.batches:
            self._rows.observe(rows)

    def refused(self, refusal: Refusal) -> None:
        """Count a refusal or a failure."""
        self._requests.labels("", refusal.code).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)
