"""What an entry of the series catalogue declares, and the arithmetic that follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from mlbot_core.market.trading_days import is_us_trading_day
from mlbot_core.timeframe import Timeframe

Unit = Literal["USD", "coin", "fraction", "index"]
Resample = Literal["first", "max", "min", "last", "sum"]
Sign = Literal["no", "nonnegative", "strict"]
Shape = Literal["rows", "lists", "data_map"]
PlanName = Literal["hobbyist", "startup", "standard", "professional"]

DAILY: Final = Timeframe(1440)
# What no value can exceed, whatever it is: above it stands a mistake of the source.
_LIMITS: Final[Mapping[Unit, float]] = {"USD": 1e15, "coin": 1e12, "fraction": 10.0, "index": 1e9}


@dataclass(frozen=True)
class Column:
    """One stored value of a series.

    Parameters
    ----------
    name
        Column in the warehouse.
    unit
        ``USD``; ``coin`` (the base coin: BTC for BTC, ETH for ETH); ``fraction``; ``index`` (a number of its own).
    resample
        How a longer bar follows from its children.
    field
        Name in the Coinglass answer; None where Coinglass does not serve it.
    scale
        Stored value = served value x scale.
    positive
        A stored value below zero (and at zero, for ``strict``) is refused as corrupt.
    maximum
        A stored value of greater magnitude is refused as corrupt; given where a mistake of the unit would show.
        None: a bound that follows from the unit.
    """

    name: str
    unit: Unit
    resample: Resample
    field: str | None
    scale: float = 1.0
    positive: Sign = "nonnegative"
    maximum: float | None = None

    @property
    def limit(self) -> float:
        """Greatest magnitude that is stored."""
        return _LIMITS[self.unit] if self.maximum is None else self.maximum


@dataclass(frozen=True)
class SeriesSpec:
    """One series family: a table in the warehouse and an endpoint of Coinglass.

    Parameters
    ----------
    name
        Name of the series and of its table.
    title, description
        For people.
    columns
        Stored values, in order.
    endpoint
        Path at Coinglass; None for a series it does not serve in this form.
    params
        Query parameters beside interval, limit and times; ``{symbol}`` stands for the coin, ``{pair}`` for
        the instrument.
    plan
        The smallest Coinglass plan that includes the endpoint.
    symbols
        Coins the endpoint is about; None: any.
    shape
        How ``data`` is built. ``rows``: a list of objects, one a bar. ``lists``: an object (or a list of one) of
        parallel lists, the columns' fields and ``time_field``. ``data_map``: an object (or a list of one) with
        the list ``time_field`` and, under the columns' field, one list per exchange; stored is their sum.
    time_field
        Where the open times are.
    time_unit
        ``ms`` or ``s``: what the endpoint is known to send. It is what people are told; the parser judges every
        single value by its magnitude, since endpoints have been seen to mix them.
    native
        None: the endpoint takes ``interval``, ``limit`` and times. A timeframe: it takes none of them and answers
        with its whole history in bars of that length.
    point_sample
        The value was taken at one moment (at ``ts``, or somewhere inside the bar) instead of over the bar.
    snapped
        Stamps are not on the grid and are put on the bar that contains them; of several in one bar the last counts.
    components
        (list, field): a row whose components are all null is an observation not yet made, whatever its total says.
    parts
        Columns that make one together, within what two decimals of a percent round to.
    padded
        The endpoint fills the time before the series begins with zeros; they are no observations.
    sparse
        ``us_trading_days``: there are bars on days of the US stock exchanges only; elsewhere no bar is missing.
    since_ms
        When the thing itself began, UTC ms: no bar is missing before. 0 where it is not known.
    publication_lag_ms
        How long after its close a bar is published at the earliest. What is served before is preliminary.
    unsettled_rows
        How many rows at the end of an answer may still move, the open bar included: 1 is the open bar alone, 2 the
        newest closed bar as well. See :meth:`lag_ms` for what follows from it.
    caveat
        What is not certain about the series; empty when nothing is.
    """

    name: str
    title: str
    description: str
    columns: tuple[Column, ...]
    endpoint: str | None
    params: Mapping[str, str]
    plan: PlanName = "hobbyist"
    symbols: tuple[str, ...] | None = None
    shape: Shape = "rows"
    time_field: str = "time"
    time_unit: Literal["ms", "s"] = "ms"
    native: Timeframe | None = None
    point_sample: bool = False
    snapped: bool = False
    components: tuple[str, str] | None = None
    parts: tuple[str, ...] = ()
    padded: bool = False
    sparse: Literal["no", "us_trading_days"] = "no"
    since_ms: int = 0
    publication_lag_ms: int = 0
    unsettled_rows: int = 1
    caveat: str = ""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the stored values, in order."""
        return tuple(column.name for column in self.columns)

    def lag_ms(self, timeframe: Timeframe) -> int:
        """Return how long after its close a bar of ``timeframe`` has its value, ms.

        A bar among the unsettled rows of an answer is treated as if it had not closed: nobody stores it, live or as
        history, before ``unsettled_rows - 1`` later bars have closed too. So its first stored version is a settled
        one, and a history that is filled in later models it as known at ``ts + timeframe + lag_ms``, which is when
        a live reader would have had it: never at a close at which the value was still another one. Restatements
        after that are versions like any other. Series that publish late work alike, by ``publication_lag_ms``.
        """
        return max(self.publication_lag_ms, max(0, self.unsettled_rows - 1) * timeframe.ms)

    def expected_opens(self, timeframe: Timeframe, start_ms: int, end_ms: int) -> npt.NDArray[np.int64]:
        """Return the open times in ``[start_ms, end_ms)`` at which a bar can be expected, int64, ascending."""
        opens = timeframe.opens_between(max(start_ms, self.since_ms), end_ms)
        return opens if self.sparse == "no" else opens[is_us_trading_day(opens)]


def ohlc(
    unit: Unit,
    scale: float = 1.0,
    positive: Sign = "strict",
    maximum: float | None = None,
    *,
    served: bool = True,
) -> tuple[Column, ...]:
    """Return open, high, low and close as Coinglass names them, or as columns it does not serve."""
    rules: tuple[tuple[str, Resample], ...] = (("open", "first"), ("high", "max"), ("low", "min"), ("close", "last"))
    return tuple(Column(name, unit, rule, name if served else None, scale, positive, maximum) for name, rule in rules)
