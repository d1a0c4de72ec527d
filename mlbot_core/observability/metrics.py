"""From what sources say to what Prometheus scrapes: each source is read by a thread of its own at its own pace, and a
scrape only shows what was read last. So nothing that hangs holds up a scrape, and no scrape holds up a trade.
"""

from __future__ import annotations

import bisect
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from mlbot_core.clock import Clock
from mlbot_core.errors import MlbotError
from mlbot_core.observability.metrics_catalogue import CATALOGUE, LATENCY_BUCKETS_S, Metric

_LOG = logging.getLogger(__name__)
Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily


class PassedOver(MlbotError):
    """Not read this time, so that nobody has to wait for it; what was read before stands."""


@dataclass(frozen=True)
class Since:
    """A moment, UTC ms of the product's clock, that is shown as its age in seconds."""

    ms: int


@dataclass
class Latencies:
    """Counts by bucket of :data:`LATENCY_BUCKETS_S`, the last one unbounded, and the sum in seconds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BUCKETS_S) + 1))
    total_s: float = 0.0

    def add(self, seconds: float) -> None:
        """Count one; a negative one (clocks that disagree) counts as zero."""
        value = max(0.0, seconds)
        self.counts[bisect.bisect_left(LATENCY_BUCKETS_S, value)] += 1
        self.total_s += value

    def copy(self) -> Latencies:
        """Return one that does not change with this one."""
        return Latencies(list(self.counts), self.total_s)


Value = float | Since | Latencies


class Readings:
    """What one source said: values by metric and labels."""

    def __init__(self) -> None:
        self.values: dict[str, dict[tuple[str, ...], Value]] = {}

    def put(self, name: str, value: Value, **labels: str) -> None:
        """Set a value; one that is not finite is left out, since nothing is known then.

        Raises
        ------
        KeyError
            If the catalogue does not have the metric, or with other labels.
        """
        metric = CATALOGUE[name]
        if set(labels) != set(metric.labels):
            raise KeyError(f"{name} has labels {metric.labels}, not {tuple(labels)}")
        if isinstance(value, float | int) and not math.isfinite(value):
            return
        self.values.setdefault(name, {})[tuple(labels[label] for label in metric.labels)] = value


class MetricSource(Protocol):
    """Something that is read again and again.

    Attributes
    ----------
    name
        For people and labels.
    every_s
        Pause between two readings, seconds of the wall.
    """

    name: str
    every_s: float

    def read(self) -> Readings | None:
        """Return what it says now; None where there is nothing to read yet.

        Raises
        ------
        PassedOver
            If reading now would hold somebody up.
        """
        ...


class Polled:
    """A source, what it said last, and how it is doing."""

    def __init__(self, source: MetricSource) -> None:
        self.source = source
        self._guard = threading.Lock()
        self._readings = Readings()
        self._up = False
        self._present = False
        self._errors = 0
        self._passes = 0
        self._seconds = 0.0
        self._told: str | None = None
        self._good_at = time.monotonic()

    def poll(self) -> None:
        """Read the source once; whatever goes wrong is counted, and written to the log when it is new."""
        began = time.monotonic()
        try:
            found = self.source.read()
        except PassedOver:
            with self._guard:
                self._passes += 1
            return
        except Exception as error:  # noqa: BLE001 - an observer must outlive everything that it looks at
            told = f"{type(error).__name__}: {error}"
            if told != self._told:
                _LOG.warning("the exporter cannot read %s: %s", self.source.name, told)
            with self._guard:
                self._told, self._up, self._errors = told, False, self._errors + 1
                self._seconds = time.monotonic() - began
            return
        with self._guard:
            self._told, self._up, self._present = None, True, found is not None
            self._readings = Readings() if found is None else found
            self._seconds = time.monotonic() - began
            self._good_at = time.monotonic()

    def loop(self, stopping: threading.Event) -> None:
        """Read until told to stop."""
        while not stopping.is_set():
            self.poll()
            stopping.wait(self.source.every_s)

    def show(self, into: Readings) -> Mapping[str, dict[tuple[str, ...], Value]]:
        """Return what was read last, and put how the source is doing into ``into``."""
        with self._guard:
            name = self.source.name
            into.put("mlbot_exporter_source_up", float(self._up), reads=name)
            into.put("mlbot_exporter_source_present", float(self._present), reads=name)
            into.put("mlbot_exporter_source_errors_total", float(self._errors), reads=name)
            into.put("mlbot_exporter_source_passes_total", float(self._passes), reads=name)
            into.put("mlbot_exporter_source_age_seconds", time.monotonic() - self._good_at, reads=name)
            into.put("mlbot_exporter_source_read_seconds", self._seconds, reads=name)
            return self._readings.values


class MlbotCollector(Collector):
    """Shows what all sources said last.

    Parameters
    ----------
    sources
        Each polled by a thread once :meth:`start` was called.
    clock
        Ages are measured on it.
    build
        Labels of ``mlbot_build_info``.
    """

    def __init__(self, sources: Sequence[MetricSource], clock: Clock, build: Mapping[str, str]) -> None:
        self.polled = [Polled(source) for source in sources]
        self._clock = clock
        self._build = dict(build)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Read every source again and again, each in a thread."""
        for one in self.polled:
            thread = threading.Thread(
                target=one.loop, args=(self._stopping,), name=f"read-{one.source.name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """End the threads; one that hangs in its source is left behind, as a daemon."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(2.0)

    def poll(self) -> None:
        """Read every source once, here and now."""
        for one in self.polled:
            one.poll()

    def collect(self) -> Iterator[Family]:
        """Yield every metric of the catalogue, those without a value too."""
        own = Readings()
        own.put("mlbot_build_info", 1.0, **self._build)
        parts = [one.show(own) for one in self.polled]
        now_ms = self._clock.now_ms()
        for metric in CATALOGUE.values():
            values = (item for part in (own.values, *parts) for item in part.get(metric.name, {}).items())
            yield _family(metric, values, now_ms)

    def describe(self) -> Iterable[Family]:
        """Yield nothing: names need not be checked against other collectors."""
        return ()


def _family(metric: Metric, values: Iterable[tuple[tuple[str, ...], Value]], now_ms: int) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in values:
            assert isinstance(value, Latencies)
            bounds = [*map(str, LATENCY_BUCKETS_S), "+Inf"]
            running, buckets = 0, []
            for bound, count in zip(bounds, value.counts, strict=True):
                running += count
                buckets.append((bound, float(running)))
            histogram.add_metric(labels, buckets, value.total_s)
        return histogram
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = made(metric.name, metric.help, labels=metric.labels)
    for labels, value in values:
        assert not isinstance(value, Latencies)
        number = (now_ms - value.ms) / 1000 if isinstance(value, Since) else float(value)
        family.add_metric(labels, number)
    return family
