"""The newest closed bar of every series that a market's features are made of, in time for its decision.

A decision uses what was known at its bar's close plus the settle delay. So the bars are asked for from the close on,
what is missing again and again until that time, and where the delay is long everything once more shortly before it:
what stands then is what counts. What arrives later is stored as late, for the next decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from mlbot_core.clock import Clock, format_utc
from mlbot_core.config import Settings
from mlbot_core.errors import UsageError
from mlbot_core.features.dataset import DatasetRequest, input_series
from mlbot_core.features.sets import configured_set
from mlbot_core.market import series_spec
from mlbot_core.sources import Source
from mlbot_core.timeframe import DAY_MS, Market, Timeframe
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.ingest import IngestRequest
from mlbot_core.warehouse.partitions import PartitionOutcome
from mlbot_core.warehouse.refresh import REFRESH_BARS, Refreshed, refresh_many

State = Literal["in time", "late", "missing", "not served"]

# with a shorter settle delay there is no time for a second look at everything
_SECOND_LOOK_FROM_MS: Final = 30_000
_SECOND_LOOK_BEFORE_MS: Final = 20_000
_FARTHEST_MS: Final = 14 * DAY_MS


@dataclass(frozen=True)
class Arrival:
    """What became of one series.

    Parameters
    ----------
    timeframe
        Of its bars; None where the source does not serve it.
    expected_ts
        Open time of the newest bar that the decision could know, UTC ms; None if there is none.
    known_at
        From when on that bar is known, UTC ms; None while it is missing.
    state
        ``in time``, ``late`` (known only after the decision time), ``missing`` or ``not served``.
    inserted, restated
        Versions that were stored in this pull, and how many of them restate a bar.
    error
        Why the source did not deliver the last time; empty where it did.
    """

    series: str
    timeframe: str | None
    expected_ts: int | None
    known_at: int | None
    state: State
    inserted: int = 0
    restated: int = 0
    error: str = ""


@dataclass(frozen=True)
class Pulled:
    """What a pull brought.

    Parameters
    ----------
    ts
        Open time of the bar, UTC ms.
    decision_ms
        Its close plus the settle delay, UTC ms.
    started_ms, finished_ms
        Of the pull, by the clock, UTC ms.
    reads
        How often the source was asked.
    arrivals
        One a series.
    outcomes
        Months that were judged again, the newest judgement of each, for whoever keeps a record of them.
    """

    source: str
    market: Market
    ts: int
    decision_ms: int
    started_ms: int
    finished_ms: int
    reads: int
    arrivals: tuple[Arrival, ...]
    outcomes: tuple[PartitionOutcome, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether everything that the decision could know is there."""
        return not (self.missing or self.late)

    @property
    def missing(self) -> tuple[str, ...]:
        """Series whose bar has not come."""
        return tuple(one.series for one in self.arrivals if one.state == "missing")

    @property
    def late(self) -> tuple[str, ...]:
        """Series whose bar came after the decision time."""
        return tuple(one.series for one in self.arrivals if one.state == "late")

    @property
    def restated(self) -> tuple[str, ...]:
        """Series of which bars were restated."""
        return tuple(one.series for one in self.arrivals if one.restated)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "source": self.source,
            "market": str(self.market),
            "bar": format_utc(self.ts),
            "decision_time": format_utc(self.decision_ms),
            "waited_ms": self.finished_ms - self.started_ms,
            "reads": self.reads,
            "complete": self.complete,
            "in_time": sum(one.state == "in time" for one in self.arrivals),
            "late": list(self.late),
            "missing": list(self.missing),
            "restated": list(self.restated),
            "errors": {one.series: one.error for one in self.arrivals if one.error},
        }

    def line(self) -> str:
        """Return the whole in one line for people."""
        there = sum(one.state == "in time" for one in self.arrivals)
        asked = sum(one.state != "not served" for one in self.arrivals)
        parts = [f"{self.market} {format_utc(self.ts)} from {self.source}: {there} of {asked} series in time"]
        for word, names in (("late", self.late), ("missing", self.missing), ("restated", self.restated)):
            if names:
                parts.append(f"{word}: {', '.join(names)}")
        return "; ".join(parts)


def pull(
    store: Warehouse,
    source: Source,
    settings: Settings,
    market: Market,
    ts: int | None = None,
    *,
    run_id: str,
    identity: str = "",
    bars: int = REFRESH_BARS,
    every_s: float = 0.5,
    threads: int = 4,
) -> Pulled:
    """Bring the newest closed bar of a market into the store, and wait for it until its decision time.

    Parameters
    ----------
    ts
        Open time of the bar, UTC ms; by default the newest closed one. A bar that is still open is waited for.
    identity
        Which market a source with several of them serves.
    bars
        How many of the newest bars are read again: late and restated ones become versions.
    every_s
        Pause between two reads of what is missing, seconds of the clock.

    Returns
    -------
    Pulled
        An old bar is asked for once and not waited for; so is the newest one after its decision time.

    Raises
    ------
    UsageError
        If the bar closes later than one bar from now, or is off the grid.
    WarehouseError
        If the store holds another market under this source's name.
    """
    clock = store.clock
    started = clock.now_ms()
    delay = settings.intervals.settle_delay_ms(source.name)
    opened = market.timeframe.last_closed(started) if ts is None else ts
    close = opened + market.timeframe.ms
    decision = close + delay
    if opened % market.timeframe.ms or close - started > market.timeframe.ms:
        raise UsageError(
            f"no bar of {market} to be pulled opens at {format_utc(opened)} (now {format_utc(started)}); give the open "
            "time of a closed bar, or of the one that closes next"
        )
    _sleep_until(clock, close)
    names = wanted_series(store, source.name, settings, market, run_id)
    requests = {
        name: IngestRequest(name, market, (), settings.intervals.quality, delay, run_id, identity) for name in names
    }
    total: dict[str, Refreshed] = {}
    second_look = decision - _SECOND_LOOK_BEFORE_MS if delay >= _SECOND_LOOK_FROM_MS else None
    wanted: Sequence[str] = names
    reads = 0
    while True:
        done = refresh_many(
            store, source, clock, [requests[name] for name in wanted], bars, threads=threads, ask_after_ms=0
        )
        reads += 1
        _add(total, done)
        arrivals = _arrivals(store, source, market, decision, names, total)
        open_ = [one.series for one in arrivals if one.state == "missing"]
        now = clock.now_ms()
        if second_look is not None and now < decision:
            # what is missing is asked for until then, everything once more at that moment
            if open_ and now + every_s * 1000 < second_look:
                wanted, pause = open_, every_s
            else:
                wanted, pause, second_look = names, max(0.0, (second_look - now) / 1000), None
        elif open_ and now + every_s * 1000 <= decision:
            wanted, pause = open_, every_s
        else:
            break
        clock.sleep(pause)
    return Pulled(
        source.name, market, opened, decision, started, clock.now_ms(), reads, arrivals,
        tuple(outcome for name in names if name in total for outcome in total[name].outcomes),
    )  # fmt: skip


def wanted_series(
    store: Warehouse, source: str, settings: Settings, market: Market, run_id: str = "live"
) -> tuple[str, ...]:
    """Return the series that the features of a market are made from in this store, in the catalogue's order."""
    delay = settings.intervals.settle_delay_ms(source)
    request = DatasetRequest(source, market, (), delay, store.clock.now_ms(), run_id)
    with store.read() as con:
        return input_series(con, request, configured_set(settings.models.features))


def expected_open(series: str, timeframe: Timeframe, decision_ms: int) -> int | None:
    """Return the open time of the newest bar of a series that a decision could know, UTC ms; None if there is none.

    Parameters
    ----------
    timeframe
        Of the series' bars.
    decision_ms
        UTC ms.
    """
    spec = series_spec(series)
    end = timeframe.floor(decision_ms - spec.lag_ms(timeframe))
    opens = spec.expected_opens(timeframe, end - max(_FARTHEST_MS, 2 * timeframe.ms), end)
    return int(opens[-1]) if len(opens) else None


def _sleep_until(clock: Clock, ms: int) -> None:
    while (left := ms - clock.now_ms()) > 0:
        clock.sleep(left / 1000)


def _add(total: dict[str, Refreshed], done: Sequence[Refreshed]) -> None:
    for one in done:
        before = total.get(one.series)
        if before is None:
            total[one.series] = one
            continue
        newest = {outcome.key: outcome for outcome in (*before.outcomes, *one.outcomes)}
        total[one.series] = Refreshed(
            one.series,
            tuple(newest.values()),
            before.inserted + one.inserted,
            before.restated + one.restated,
            one.error,
        )


def _arrivals(
    store: Warehouse,
    source: Source,
    market: Market,
    decision_ms: int,
    names: Sequence[str],
    total: dict[str, Refreshed],
) -> tuple[Arrival, ...]:
    """Look up in the store since when the newest bar that the decision could know is known."""
    served = {name: _served(total[name], source, market) for name in names}
    expected = {
        name: expected_open(name, timeframe, decision_ms) for name, timeframe in served.items() if timeframe is not None
    }
    query = " UNION ALL ".join(
        f"SELECT '{name}' AS series, min(known_at) AS known_at FROM {name} "
        f"WHERE ts = {int(open_)} AND symbol || '' = $symbol AND source || '' = $source "
        f"AND timeframe || '' = '{served[name]}'"
        for name, open_ in expected.items()
        if open_ is not None
    )
    known: dict[str, int | None] = {}
    if query:
        with store.read() as con:
            rows = con.execute(query, {"symbol": market.symbol, "source": source.name}).fetchall()
        known = {str(name): None if at is None else int(at) for name, at in rows}
    found = []
    for name in names:
        timeframe, open_, at, one = served[name], expected.get(name), known.get(name), total[name]
        state: State = "not served"
        if timeframe is not None:
            state = "in time" if open_ is None or (at or 0) > 0 else "missing"
            state = "late" if at is not None and at > decision_ms else state
        text = None if timeframe is None else str(timeframe)
        found.append(Arrival(name, text, open_, at, state, one.inserted, one.restated, one.error))
    return tuple(found)


def _served(done: Refreshed, source: Source, market: Market) -> Timeframe | None:
    """Return the timeframe of a series' bars; None where it is not served."""
    if done.error:
        # a source that failed cannot be asked what it serves either; the catalogue says what is missed
        return series_spec(done.series).native or market.timeframe
    served = source.served(done.series, market)
    return None if served is None else served.timeframe
