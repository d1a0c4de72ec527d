"""What a model is asked with about one bar: read from the store as it was at the decision, from the lookback alone.

Two readings of the same bar:

* *in time*: T = S = the decision time. A live decision and its replay; it equals the batch within 1e-9.
* *late*: T = S = a later moment, for a bar of which something came after its decision (a source that was late, a
  process that was down). Late values are in it. It is for people and records; nothing is decided on it, as nothing is
  in a backtest.

A value of the market's own timeframe that is missing at the decision time is taken as late as long as its series had a
bar within the last day: the stored features drop such rows too, once the value has come. A series that has been silent
for longer is an outage, whose values are unknown, in both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.clock import format_utc
from mlbot_core.config import TargetConfig
from mlbot_core.errors import MissingDataError
from mlbot_core.features.build import build_features
from mlbot_core.features.incremental import Decision, read_lookback, read_stored
from mlbot_core.features.panel import SettledSeries, build_panel
from mlbot_core.features.panel_columns import joins_as_of
from mlbot_core.features.registry import FeatureSet
from mlbot_core.live.pull import expected_open
from mlbot_core.targets import build_targets, target_lookback
from mlbot_core.timeframe import DAY_MS, Timeframe

MIN_KNOWN: Final = 0.9
"""A row with a smaller share of its features known forecasts nothing: the rule of the training data."""
_OUTAGE_MS: Final = DAY_MS


@dataclass(frozen=True)
class Moment(Decision):
    """A decision, or a later look at its bar.

    Parameters
    ----------
    seen_ms
        Nothing that became known after it is used, UTC ms; None: the decision time.
    """

    seen_ms: int | None = None

    @property
    def decision_ms(self) -> int:
        """When the bar is decided, UTC ms."""
        return self.ts + self.market.timeframe.ms + self.settle_delay_ms

    @property
    def known_by_ms(self) -> int:
        """T: nothing that became known after it is used, UTC ms."""
        return self.decision_ms if self.seen_ms is None else self.seen_ms

    @property
    def late(self) -> bool:
        """Whether this is a later look."""
        return self.known_by_ms > self.decision_ms


@dataclass(frozen=True)
class Input:
    """One thing that a forecast rests on.

    Parameters
    ----------
    name
        Of a series, or of a base forecast.
    timeframe
        Of its bars.
    ts, known_at
        Of its newest bar that was known, and since when, UTC ms; None where none was.
    expected_ts
        Open time of the newest bar that there could have been, UTC ms; None where none could.
    age_ms
        From the newest bar's close to the close of the decided bar; None where there is none.
    state
        ``fresh``; ``late``, it is expected and had not come; ``carried``, an older bar of a slower series stands in;
        ``silent``, it has had nothing for long; ``absent``.
    version
        Of the model, for a base forecast.
    value
        The base forecast's score in barrier widths, as it entered; None for a series.
    """

    name: str
    timeframe: str
    ts: int | None
    known_at: int | None
    expected_ts: int | None
    age_ms: int | None
    state: str
    version: str = ""
    value: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain values, the score by its hexadecimal text."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return plain | {"value": None if self.value is None else self.value.hex()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Input:
        """Read what :meth:`as_json` wrote."""
        value = values["value"]
        return cls(**{**values, "value": None if value is None else float.fromhex(value)})


@dataclass(frozen=True, eq=False)
class BarRow:
    """Everything of the market's own that a forecast of one bar takes.

    Parameters
    ----------
    moment
        Of which bar, and known by when.
    features
        One float64 column a feature, indexed by open time; the bar last, those before it are context.
    late_rows
        bool[rows]: a value of this row was not known at the row's own decision time.
    prices
        Settled prices of the lookback.
    inputs
        One a series that is stored.
    """

    moment: Moment
    features: pd.DataFrame
    late_rows: npt.NDArray[np.bool_]
    prices: SettledSeries
    inputs: tuple[Input, ...]

    @property
    def late_inputs(self) -> tuple[str, ...]:
        """Series that were expected and had not come."""
        return tuple(one.name for one in self.inputs if one.state == "late")

    def width(self, config: TargetConfig) -> float:
        """Return the distance of the main barrier at this bar, log return: as the stored targets hold it."""
        step = self.moment.market.timeframe.ms
        start = self.moment.ts - target_lookback(config) * step
        panel = build_panel(
            {"price": self.prices},
            self.moment.market,
            start,
            self.moment.ts + step,
            self.moment.settle_delay_ms,
            keep_late=True,
        )
        return float(build_targets(panel, self.moment.market, config)["tb_width"].iloc[-1])


def read_bar(
    con: duckdb.DuckDBPyConnection, moment: Moment, features: FeatureSet, names: Sequence[str], rows: int
) -> dict[str, SettledSeries]:
    """Read the lookback of one bar, after its months were checked; only reading, so that the store is soon free again.

    Parameters
    ----------
    names
        Series to read.
    rows
        Rows that are wanted, the bar's own and those before it.

    Raises
    ------
    MissingDataError
        If the month of the bar was never made for a series.
    QualityRefusedError
        If a month in the window failed a check or was never checked.
    """
    # how fresh each series is at this very moment is judged here, of each by itself
    return read_lookback(con, moment, names, _start(moment, features, rows), forgiven=("freshness",))[0]


def read_bar_again(
    con: duckdb.DuckDBPyConnection, moment: Moment, features: FeatureSet, stored: Mapping[str, Timeframe], rows: int
) -> dict[str, SettledSeries]:
    """As :func:`read_bar` for a replay: the series and their timeframes are those of then, and verdicts are not asked.

    What a check said of a month may have changed since; what the bars were at T and S has not.
    """
    return read_stored(con, moment, stored, _start(moment, features, rows))


def compute_row(series: Mapping[str, SettledSeries], moment: Moment, features: FeatureSet, rows: int) -> BarRow:
    """Compute the features of a bar and of the rows before it from settled series that hold the lookback.

    Raises
    ------
    MissingDataError
        If the price of the bar is not known yet.
    """
    price = series.get("price")
    if price is None or len(price.ts) == 0 or int(price.ts[-1]) != moment.ts:
        newest = format_utc(int(price.ts[-1])) if price is not None and len(price.ts) else "none"
        raise MissingDataError(
            f"{moment.source} has no price bar of {moment.market} at {format_utc(moment.ts)} that was known by "
            f"{format_utc(moment.known_by_ms)} (newest in the window: {newest}); pull it first"
        )
    step = moment.market.timeframe.ms
    panel = build_panel(
        series,
        moment.market,
        _start(moment, features, rows),
        moment.ts + step,
        moment.settle_delay_ms,
        keep_late=moment.late,
    )
    built = build_features(panel, features, last=rows)
    late = panel["late"].to_numpy(dtype=np.bool_)[-rows:].copy()
    inputs = tuple(_input(one, moment) for one in series.values())
    late[-1] |= any(one.state == "late" for one in inputs)
    return BarRow(moment, built.set_index("ts"), late, price, inputs)


def _start(moment: Moment, features: FeatureSet, rows: int) -> int:
    return moment.ts - (features.lookback + rows - 1) * moment.market.timeframe.ms


def _input(series: SettledSeries, moment: Moment) -> Input:
    """Say how fresh a series is at the decision."""
    own = moment.market.timeframe
    expected = expected_open(series.series, series.timeframe, moment.decision_ms)
    close = moment.ts + own.ms
    if len(series.ts) == 0:
        return Input(series.series, str(series.timeframe), None, None, expected, None, "absent")
    at, known = int(series.ts[-1]), int(series.known_at[-1])
    age = close - at - series.timeframe.ms
    if expected is None or at >= expected:
        state = "fresh" if known <= moment.decision_ms else "late"
    elif joins_as_of(series.series, series.timeframe, own):
        state = "carried"
    else:
        state = "late" if expected - at <= _OUTAGE_MS else "silent"
    return Input(series.series, str(series.timeframe), at, known, expected, age, state)
