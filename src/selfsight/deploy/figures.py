"""What a service tells of itself, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from selfsight.deploy.drift import Distance

IMAGES = (1, 2, 4, 8)
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
ROUTES = {"predict", "feedback", "load", "rollback", "health", "ready", "metrics", "card"}


class Figures:
    """The figures of a service. waiting: how many images wait. encodings: how often each encoder ran, by digest."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        here = self._registry
        self._requests = Counter("selfsight_requests", "Requests", ["route", "status"], registry=here)
        self._seconds = Histogram("selfsight_seconds", "Time of answered predictions", buckets=SECONDS, registry=here)
        self._batches = Histogram("selfsight_batch_images", "Images of a batch", buckets=IMAGES, registry=here)
        self._decisions = Counter("selfsight_decisions", "What was decided", ["head", "decision"], registry=here)
        self._feedback = Counter("selfsight_feedback", "Labels that came back", ["head"], registry=here)
        self._distance = Gauge(
            "selfsight_drift", "How many times as far as usual the last 64 images are", ["head"], registry=here
        )
        self._limit = Gauge("selfsight_drift_limit", "Of that, without drift in 99 % of cases", ["head"], registry=here)
        self._alarms = Counter("selfsight_drift_alarms", "Windows beyond the limit", ["head"], registry=here)
        self._heads = Gauge("selfsight_head", "The heads that are served", ["head", "digest"], registry=here)
        Gauge("selfsight_waiting_images", "Images that wait", registry=here).set_function(waiting)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        route = path.rpartition("/")[2]
        self._requests.labels(route if route in ROUTES else "other", status).inc()
        if route == "predict" and status == 200:
            self._seconds.observe(seconds)

    def batch(self, images: int) -> None:
        """A batch was computed."""
        self._batches.observe(images)

    def decided(self, head: str, decision: str) -> None:
        """A head decided about an image: a class, defect or good; nothing that is different each time."""
        self._decisions.labels(head, decision).inc()

    def labelled(self, head: str) -> None:
        """A label came back."""
        self._feedback.labels(head).inc()

    def drifted(self, head: str, found: Distance) -> None:
        """A window of images of a head was compared with what it learnt from."""
        self._distance.labels(head).set(found.distance)
        self._limit.labels(head).set(found.limit)
        self._alarms.labels(head).inc(int(found.alarm))

    def heads(self, served: Iterable[tuple[str, str]]) -> None:
        """These heads, (name, digest), are served now."""
        self._heads.clear()
        for name, digest in served:
            self._heads.labels(name, digest).set(1)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
