"""Rules a stretch of bars has to pass: pure functions, each with a verdict a person can read.

A rule says only what it sees; :data:`QUALITY_CHECKS` says whether a failed one refuses a partition. The caller stores
the verdict as a row (check, passed, found, detail) beside the asset, partition and data version it belongs to. Rules
about values (jumps, units, agreement) are in :mod:`mlbot_core.market.quality_values`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mlbot_core.clock import format_utc
from mlbot_core.timeframe import Timeframe

_Stamps = npt.NDArray[np.int64]
_Values = npt.NDArray[np.float64]

# Recorded BTC closes (2020-10 to 2025-06) moved by at most 0.12 in an hour and 0.19 in a day.
MAX_JUMP = 0.35


@dataclass(frozen=True)
class QualityCheck:
    """One check of raw series.

    Parameters
    ----------
    severity
        ``blocking``: every consumer refuses a partition that failed it; ``advisory``: shown and counted, no more.
    required
        Whether consumers also refuse a partition that has no verdict of it.
    description
        For people.
    """

    name: str
    severity: Literal["blocking", "advisory"]
    required: bool
    description: str


QUALITY_CHECKS: Final[Mapping[str, QualityCheck]] = {
    check.name: check
    for check in (
        QualityCheck("duplicates", "blocking", True, "No version of a bar is stored twice."),
        QualityCheck(
            "gaps",
            "blocking",
            True,
            "Few enough bars are missing; each missing stretch is a row of the gaps table.",
        ),
        QualityCheck("freshness", "blocking", True, "The newest bar that can be expected by now is there."),
        QualityCheck(
            "sanity", "blocking", True, "Values are possible: signs, finiteness, high and low around open and close."
        ),
        QualityCheck(
            "units",
            "blocking",
            False,
            "Magnitudes fit the unit: open interest in USD or coins against the price, funding as a fraction and not "
            "percent, turnover in USD against coins, shares that add up to one. A wrong unit is wrong by a factor of "
            "100 or more, so the bounds are wide.",
        ),
        QualityCheck(
            "cross_source",
            "blocking",
            False,
            "Two sources that store the same thing agree: closes within the configured difference in nearly all bars "
            "and not better one bar apart, running funding of the same magnitude as what was settled. Blocking, "
            "because what it finds (a wrong symbol, unit or time) is wrong as a whole; single bars that differ, as "
            "venues do in a crash, are counted and pass. Passes where no second source is stored.",
        ),
        QualityCheck(
            "jumps",
            "advisory",
            False,
            "No change is an outlier by far against the bars before it (robust, trailing). Advisory: markets jump.",
        ),
        QualityCheck(
            "staleness",
            "advisory",
            False,
            "Values move: no long run of bars that are all the same. Advisory: a halted market stands still too.",
        ),
        QualityCheck(
            "funding_interval",
            "advisory",
            False,
            "Settlements keep their spacing. Advisory: exchanges change it, and whoever models funding wants to know.",
        ),
    )
}

# What every consumer of raw series requires a verdict of.
REQUIRED_CHECKS: Final = tuple(check.name for check in QUALITY_CHECKS.values() if check.required)
# What it refuses when it failed.
BLOCKING_CHECKS: Final = tuple(check.name for check in QUALITY_CHECKS.values() if check.severity == "blocking")
# What is shown and counted, no more.
ADVISORY_CHECKS: Final = tuple(check.name for check in QUALITY_CHECKS.values() if check.severity == "advisory")


class Gap(NamedTuple):
    """A run of missing bars: open times of the first and last one (UTC ms, inclusive) and how many."""

    from_ts: int
    to_ts: int
    bars: int


@dataclass(frozen=True)
class CheckResult:
    """The verdict of one rule.

    Parameters
    ----------
    check
        Name of the rule.
    passed
        Whether the bars satisfy it.
    found
        How many bars (or gaps' bars) violate it.
    detail
        One line for people: what was looked at, and the first violation.
    """

    check: str
    passed: bool
    found: int
    detail: str


def find_gaps(
    ts: _Stamps, timeframe: Timeframe, start_ms: int, end_ms: int, *, expected: _Stamps | None = None
) -> list[Gap]:
    """Return the runs of bars that are missing in ``[start_ms, end_ms)``, ascending.

    Parameters
    ----------
    ts
        Open times that exist, UTC ms, in any order, repetitions allowed.
    timeframe
        Their length.
    start_ms, end_ms
        The stretch in which every bar is expected, UTC ms.
    expected
        Open times at which a bar is expected, for a series that does not have one in every interval (ascending;
        those outside the stretch are left out).
    """
    expected = _expected(timeframe, start_ms, end_ms, expected)
    missing = expected[~np.isin(expected, ts)]
    if len(missing) == 0:
        return []
    breaks = np.flatnonzero(np.diff(missing) != timeframe.ms) + 1
    return [Gap(int(run[0]), int(run[-1]), len(run)) for run in np.split(missing, breaks)]


def _expected(timeframe: Timeframe, start_ms: int, end_ms: int, opens: _Stamps | None) -> _Stamps:
    if opens is None:
        return timeframe.opens_between(start_ms, end_ms)
    return opens[(opens >= start_ms) & (opens < end_ms)]


def gaps(
    ts: _Stamps,
    timeframe: Timeframe,
    start_ms: int,
    end_ms: int,
    *,
    max_missing_share: float = 0.0,
    max_gap_bars: int = 0,
    expected: _Stamps | None = None,
) -> CheckResult:
    """Check that few enough bars are missing in ``[start_ms, end_ms)``.

    Parameters
    ----------
    max_missing_share
        Largest share of expected bars that may be missing.
    max_gap_bars
        Longest run of missing bars that is tolerated.
    expected
        As in :func:`find_gaps`.
    """
    due = len(_expected(timeframe, start_ms, end_ms, expected))
    found = find_gaps(ts, timeframe, start_ms, end_ms, expected=expected)
    missing = sum(gap.bars for gap in found)
    if not found:
        return CheckResult("gaps", True, 0, f"all {due} {timeframe} bars are there")
    longest = max(found, key=lambda gap: gap.bars)
    passed = missing <= max_missing_share * due and longest.bars <= max_gap_bars
    detail = (
        f"{missing} of {due} {timeframe} bars missing in {len(found)} gaps; the longest has {longest.bars} from "
        f"{format_utc(longest.from_ts)} to {format_utc(longest.to_ts)}; allowed are {max_missing_share:.1%} "
        f"and {max_gap_bars} in a row"
    )
    return CheckResult("gaps", passed, missing, detail)


def duplicates(ts: _Stamps) -> CheckResult:
    """Check that no bar occurs twice (give it one version per bar)."""
    values, counts = np.unique(np.asarray(ts), return_counts=True)
    extra = int((counts - 1).sum())
    if extra == 0:
        return CheckResult("duplicates", True, 0, f"{len(values)} bars, each once")
    first = int(values[counts > 1][0])
    return CheckResult(
        "duplicates", False, extra, f"{extra} repeated rows among {len(ts)}; the first is bar {format_utc(first)}"
    )


def freshness(
    newest_ts: int | None,
    timeframe: Timeframe,
    now_ms: int,
    *,
    settle_delay_ms: int = 0,
    record_end_ms: int | None = None,
) -> CheckResult:
    """Check that the newest closed bar one can expect by now is there.

    Parameters
    ----------
    newest_ts
        Open time of the newest stored bar, UTC ms; None when there is none.
    now_ms
        The present, UTC ms.
    settle_delay_ms
        How long after the close a bar may take to arrive.
    record_end_ms
        End of a frozen record (exclusive): nothing after it is ever expected.
    """
    expected = timeframe.last_closed(now_ms - settle_delay_ms)
    if record_end_ms is not None:
        expected = min(expected, timeframe.last_closed(record_end_ms))
    if newest_ts is not None and newest_ts >= expected:
        return CheckResult("freshness", True, 0, f"the newest {timeframe} bar is {format_utc(newest_ts)}")
    if newest_ts is None:
        return CheckResult("freshness", False, 1, f"there is no bar; expected {format_utc(expected)} by now")
    late = (expected - newest_ts) // timeframe.ms
    return CheckResult(
        "freshness",
        False,
        int(late),
        f"the newest {timeframe} bar is {format_utc(newest_ts)}, {late} bars behind {format_utc(expected)}",
    )


def ohlc_order(ts: _Stamps, open_: _Values, high: _Values, low: _Values, close: _Values) -> CheckResult:
    """Check low <= min(open, close) and high >= max(open, close); bars with a missing value are not judged."""
    wrong = (low > np.minimum(open_, close)) | (high < np.maximum(open_, close))
    found = int(wrong.sum())
    if found == 0:
        return CheckResult("ohlc_order", True, 0, f"high and low enclose open and close in all {len(ts)} bars")
    at = int(np.argmax(wrong))
    return CheckResult(
        "ohlc_order",
        False,
        found,
        f"{found} of {len(ts)} bars are inconsistent; the first is {format_utc(int(ts[at]))} with "
        f"open {open_[at]:g}, high {high[at]:g}, low {low[at]:g}, close {close[at]:g}",
    )


def price_jumps(ts: _Stamps, close: _Values, max_log_return: float = MAX_JUMP) -> CheckResult:
    """Check that no close differs from the one before it by more than ``max_log_return`` (natural log, absolute)."""
    moves = np.abs(np.diff(np.log(close)))
    wrong = moves > max_log_return
    found = int(wrong.sum())
    if found == 0:
        return CheckResult("price_jumps", True, 0, f"no move beyond {max_log_return:g} (log) in {len(ts)} bars")
    at = int(np.argmax(wrong)) + 1
    return CheckResult(
        "price_jumps",
        False,
        found,
        f"{found} moves beyond {max_log_return:g} (log); the first is {close[at - 1]:g} to {close[at]:g} "
        f"at {format_utc(int(ts[at]))}",
    )
