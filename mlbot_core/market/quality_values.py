"""Rules about values: outliers, standstill, units by their magnitude, agreement between sources.

Like the rules of :mod:`mlbot_core.market.quality` these are pure functions that say what they see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from mlbot_core.clock import format_utc
from mlbot_core.market.quality import CheckResult
from mlbot_core.timeframe import HOUR_MS

_Stamps = npt.NDArray[np.int64]
_Values = npt.NDArray[np.float64]

# Median absolute deviation times this estimates a standard deviation (normal distribution).
_MAD_TO_SIGMA: Final = 1.4826


_MEANS: Final = 3.0


class Bound(NamedTuple):
    """Magnitudes that a unit allows: smallest and greatest."""

    low: float
    high: float


# Open interest of any perpetual worth trading, in USD. Recorded BTC: 1.3e9 to 8e10; the same in coins is 4e4 to 3e5.
OPEN_INTEREST_USD: Final = Bound(1e6, 1e13)
# Median magnitude of a month's funding, a fraction. Recorded BTC months: 1.6e-5 to 8.4e-4; percent is 100 times that.
FUNDING: Final = Bound(1e-7, 4e-3)
# Turnover in USD by turnover in coins times the price: one, but for how the price is averaged.
CONSISTENT: Final = Bound(0.7, 1.4)
# Running funding by settled funding, medians of a month: percent taken for a fraction makes 100.
FUNDING_RATIO: Final = Bound(0.05, 20.0)
_SHARES_SLACK: Final = 0.02
_FEW: Final = 8


def jumps(ts: _Stamps, columns: Mapping[str, _Values], first: int, *, window: int, scale: float) -> CheckResult:
    """Look for changes that are outliers against the changes before them.

    The change of bar t (natural log where all values are positive, else the difference) is measured in robust
    standard deviations of the ``window`` changes before it: 1.4826 times their median absolute value (the median
    change of a bar is zero for all practical purposes). It must also be three times their mean absolute value: after
    a storm of jumps one more is none, and most bars need no median.

    Parameters
    ----------
    ts
        Open times, UTC ms, ascending; the bars before ``first`` are only looked back at.
    columns
        Values by name, same length.
    first
        Position of the first bar that is judged.
    window
        How many changes before a bar are looked at; bars with fewer before them are not judged.
    scale
        So many robust standard deviations are too many.
    """
    found, where = 0, ""
    judged = 0
    for name, values in columns.items():
        outside, considered = _outliers(values, first, window, scale)
        judged = max(judged, considered)
        found += len(outside)
        if len(outside) and not where:
            at = int(outside[0])
            where = f"{name} {values[at - 1]:g} to {values[at]:g} at {format_utc(int(ts[at]))}"
    if not found:
        return CheckResult("jumps", True, 0, f"no change beyond {scale:g} robust deviations in {judged} bars")
    return CheckResult(
        "jumps",
        False,
        found,
        f"{found} changes beyond {scale:g} robust deviations of the {window} before; the first is {where}",
    )


def _outliers(values: _Values, first: int, window: int, scale: float) -> tuple[_Stamps, int]:
    """Return the positions that jump, and how many were judged."""
    none = np.empty(0, dtype=np.int64)
    if len(values) <= window + 1:
        return none, 0
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = np.abs(np.diff(np.log(values) if np.nanmin(values) > 0 else values))
    # changes[i] belongs to bar i + 1 and is compared with changes[i - window : i]
    start = max(window, first - 1)
    at = np.arange(start, len(changes))
    if len(at) == 0:
        return none, 0
    totals = np.concatenate([[0.0], np.cumsum(np.nan_to_num(changes))])
    mean = (totals[at] - totals[at - window]) / window
    at = at[changes[at] > _MEANS * mean]
    before = changes[at[:, None] - np.arange(1, window + 1)]
    sigma = _MAD_TO_SIGMA * np.nanmedian(before, axis=1) if len(at) else np.empty(0)
    # a series that mostly stands still has no scale to measure by
    outside = (sigma > 0) & (changes[at] > scale * sigma)
    return at[outside] + 1, len(changes) - start


def staleness(ts: _Stamps, columns: Sequence[_Values], *, max_run: int) -> CheckResult:
    """Look for a run of more than ``max_run`` bars that are the same in every column as the bar before."""
    if len(ts) < 2 or not columns:
        return CheckResult("staleness", True, 0, f"{len(ts)} bars")
    same = np.ones(len(ts) - 1, dtype=np.bool_)
    for values in columns:
        same &= (values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1]))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts)) if len(starts) else -1
    run = int((stops - starts)[longest]) if len(starts) else 0
    if run <= max_run:
        return CheckResult("staleness", True, 0, f"the longest standstill is {run} bars; allowed are {max_run}")
    return CheckResult(
        "staleness",
        False,
        run,
        f"{run} bars in a row repeat the bar before them, from {format_utc(int(ts[starts[longest] + 1]))}; "
        f"allowed are {max_run}",
    )


def magnitude(name: str, values: _Values, bound: Bound, unit: str) -> CheckResult:
    """Check that the median magnitude of the values that are not zero is what the unit allows."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if len(sizes) == 0:
        return CheckResult("units", True, 0, f"{name} has no values to judge")
    median = float(np.median(sizes))
    passed = bound.low <= median <= bound.high
    detail = f"the median of {name} is {median:.4g} {unit}; plausible is {bound.low:g} to {bound.high:g}"
    return CheckResult("units", passed, 0 if passed else len(sizes), detail)


def consistency(name: str, usd: _Values, coins: _Values, price: float) -> CheckResult:
    """Check that a value in USD is about the same value in coins times the price (median of the bars)."""
    both = np.isfinite(usd) & np.isfinite(coins) & (coins > 0) & (usd > 0)
    if not both.any():
        return CheckResult("units", True, 0, f"{name} has no values to compare")
    ratio = float(np.median(usd[both] / (coins[both] * price)))
    passed = CONSISTENT.low <= ratio <= CONSISTENT.high
    detail = f"{name} in USD is {ratio:.4g} times its coins at {price:.6g} USD"
    return CheckResult("units", passed, 0 if passed else int(both.sum()), detail)


def sum_to_one(first: _Values, second: _Values) -> CheckResult:
    """Check that two shares add up to one."""
    total = first + second
    wrong = np.isfinite(total) & (np.abs(total - 1) > _SHARES_SLACK)
    found = int(wrong.sum())
    if not found:
        return CheckResult("units", True, 0, f"both shares add up to one in {len(total)} bars")
    return CheckResult("units", False, found, f"in {found} bars the shares add up to {total[wrong][0]:.4g}, not to one")


def agreement(
    ts: _Stamps,
    close: _Values,
    other_ts: _Stamps,
    other_close: _Values,
    other: str,
    *,
    max_difference: float,
    max_share: float,
) -> CheckResult:
    """Check that two sources tell the same prices at the same time.

    Parameters
    ----------
    ts, close, other_ts, other_close
        Open times (UTC ms, ascending, each once) and closes (USD) of either source.
    other
        Name of the second source.
    max_difference
        Greatest difference of two closes, as a fraction of the second.
    max_share
        Largest share of common bars that may differ by more.
    """
    _, mine, theirs = np.intersect1d(ts, other_ts, assume_unique=True, return_indices=True)
    if len(mine) < _FEW:
        return CheckResult("cross_source", True, 0, f"only {len(mine)} bars in common with {other}")
    gap = np.abs(close[mine] / other_close[theirs] - 1)
    wide = gap > max_difference
    found, total = int(wide.sum()), len(gap)
    worst = int(np.nanargmax(gap)) if np.isfinite(gap).any() else 0
    seen = (
        f"{found} of {total} closes differ from {other} by more than {max_difference:.2%} "
        f"(median {np.nanmedian(gap):.4%}, most {gap[worst]:.2%} at {format_utc(int(ts[mine[worst]]))})"
    )
    if found > max_share * total:
        return CheckResult("cross_source", False, found, f"{seen}; allowed are {max_share:.1%} of the bars")
    if _shifted(close[mine], other_close[theirs]):
        return CheckResult("cross_source", False, total, f"{seen}; they agree better one bar apart: a wrong time?")
    return CheckResult("cross_source", True, found, seen)


def _shifted(mine: _Values, theirs: _Values) -> bool:
    """Return whether the series agree better one bar apart than in step."""
    in_step = _median_gap(mine, theirs)
    return min(_median_gap(mine[1:], theirs[:-1]), _median_gap(mine[:-1], theirs[1:])) < 0.5 * in_step


def _median_gap(mine: _Values, theirs: _Values) -> float:
    return float(np.nanmedian(np.abs(mine / theirs - 1)))


def same_magnitude(name: str, values: _Values, other: str, others: _Values) -> CheckResult:
    """Check that running funding is of the magnitude of settled funding (medians of absolute values)."""
    mine, theirs = (np.abs(v[np.isfinite(v) & (v != 0)]) for v in (values, others))
    if len(mine) < _FEW or len(theirs) < _FEW:
        return CheckResult("cross_source", True, 0, f"too few values to compare {name} with {other}")
    ratio = float(np.median(mine) / np.median(theirs))
    passed = FUNDING_RATIO.low <= ratio <= FUNDING_RATIO.high
    detail = f"the median magnitude of {name} is {ratio:.3g} times that of {other}"
    return CheckResult("cross_source", passed, 0 if passed else len(mine), detail)


def funding_interval(ts: _Stamps, first: int) -> CheckResult:
    """Look for a change of the spacing of settlements.

    Parameters
    ----------
    ts
        Settlement times, UTC ms, ascending.
    first
        Position of the first one that is judged; those before are only looked back at.
    """
    spacing = np.diff(ts)
    if len(spacing) < 2:
        return CheckResult("funding_interval", True, 0, f"{len(ts)} settlements")
    # a missing settlement doubles one spacing; a new interval stays, so a change must be confirmed by the next one
    steady = np.flatnonzero(spacing[1:] == spacing[:-1]) + 1
    changed = [int(at) for previous, at in pairwise(steady) if spacing[previous] != spacing[at] and at + 1 >= first]
    if not changed:
        return CheckResult("funding_interval", True, 0, f"settlements every {np.median(spacing) / HOUR_MS:g} h")
    at = changed[0]
    before, after = int(spacing[steady[steady < at][-1]]) / HOUR_MS, int(spacing[at]) / HOUR_MS
    detail = f"settlements go from every {before:g} h to every {after:g} h at {format_utc(int(ts[at]))}"
    return CheckResult("funding_interval", False, len(changed), detail)
