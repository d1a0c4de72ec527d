"""What every data source can do, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from mlbot_core.market.batch import GapRecord, SeriesBatch
from mlbot_core.market.catalogue import series_spec
from mlbot_core.market.quality import find_gaps
from mlbot_core.timeframe import Market, Timeframe

# Why bars are missing, as stored in the table of gaps.
CAUSE_NOTHING = "source returned nothing"
CAUSE_NOT_YET = "closed but not served yet"
CAUSE_PADDING = "zero padding before the series begins"
CAUSE_BEFORE_HISTORY = "before the history that the source serves (plan or listing date)"
CAUSE_BEFORE_RECORD = "before the record begins"
CAUSE_AFTER_RECORD = "after the record ends"
CAUSE_NOT_RECORDED = "not in the recorded file"


@dataclass(frozen=True)
class Served:
    """What a source has of one series.

    Parameters
    ----------
    timeframe
        Timeframe of the rows; it may be longer than the market's (daily series beside hourly prices).
    earliest_ms
        Open time of the first bar, UTC ms; None when the source does not say.
    latest_ms
        End of a frozen record, UTC ms, exclusive; None for a source that goes on.
    note
        What a user of the rows should know: approximations, units, vintage. Empty when there is nothing.
    """

    timeframe: Timeframe
    earliest_ms: int | None
    latest_ms: int | None
    note: str = ""


class Source(Protocol):
    """A place that market data comes from; use it in a ``with`` block or close it."""

    name: str

    def served(self, series: str, market: Market) -> Served | None:
        """Return what the source has of ``series`` for ``market``; None if it has nothing (see :meth:`why_not`)."""
        ...

    def why_not(self, series: str, market: Market) -> str:
        """Return in a few words why ``served`` is None; empty if it is not."""
        ...

    def fetch(self, series: str, market: Market, start_ms: int, end_ms: int) -> SeriesBatch:
        """Return the closed bars with ``start_ms <= ts < end_ms`` at ``served(...).timeframe``.

        Raises
        ------
        UsageError
            If the source does not serve the series for this market.
        SourceError
            If it did not deliver (with the subclasses BadDataError, PlanError, KeyRejectedError, RateLimitedError).
        """
        ...

    def close(self) -> None:
        """Release connections and files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SourceBase:
    """The ``with`` block of a source."""

    def close(self) -> None:
        """Release connections and files; nothing to do by default."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def gap_records(
    series: str,
    symbol: str,
    timeframe: Timeframe,
    source: str,
    ts: npt.NDArray[np.int64],
    bounds: Iterable[tuple[int, int, str]],
) -> tuple[GapRecord, ...]:
    """Return the missing bars of consecutive stretches as gap records.

    Parameters
    ----------
    ts
        Open times that exist, UTC ms.
    bounds
        Stretches ``(start_ms, end_ms, cause)``; a bar missing in a stretch has that cause. Where the catalogue
        expects no bar (days without trading), none is missing.
    """
    spec = series_spec(series)
    return tuple(
        GapRecord(series, symbol, timeframe, source, gap.from_ts, gap.to_ts, cause)
        for start_ms, end_ms, cause in bounds
        for gap in find_gaps(ts, timeframe, start_ms, end_ms, expected=spec.expected_opens(timeframe, start_ms, end_ms))
    )


def fetch_many(
    source: Source,
    series: Sequence[str],
    market: Market,
    start_ms: int,
    end_ms: int,
    *,
    threads: int = 4,
    progress: Callable[[str, SeriesBatch], None] | None = None,
) -> dict[str, SeriesBatch]:
    """Fetch several series at once, within the source's rate limit.

    The first failure is raised; what has not begun by then is not asked for any more.

    Parameters
    ----------
    threads
        How many series are under way at the same time.
    progress
        Called in this thread with each series as it is complete.

    Returns
    -------
    dict
        Batches by name, in the order of ``series``.
    """
    with ThreadPoolExecutor(max_workers=max(1, min(threads, len(series)))) as pool:
        futures = {pool.submit(source.fetch, name, market, start_ms, end_ms): name for name in series}
        done: dict[str, SeriesBatch] = {}
        try:
            for future in as_completed(futures):
                name = futures[future]
                done[name] = future.result()
                if progress is not None:
                    progress(name, done[name])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return {name: done[name] for name in series}
