"""The series catalogue: for each series its endpoint, fields, canonical units, lag and resampling.

Values are stored in one canonical unit (USD, BTC, fraction); ``scale`` converts from what the endpoint serves.
Endpoints and units: Coinglass API v4, https://docs.coinglass.com.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from mlbot_core.errors import UsageError

Resample = Literal["first", "max", "min", "last", "sum"]


@dataclass(frozen=True)
class Column:
    """One stored value of a series.

    Parameters
    ----------
    name
        Column in the warehouse.
    unit
        ``USD``, ``BTC`` or ``fraction``.
    resample
        How a longer bar follows from its children.
    field
        Name in the Coinglass answer; None where Coinglass does not serve it.
    scale
        Stored value = served value x scale.
    positive
        A stored value below zero (and at zero, for prices) is refused as corrupt.
    """

    name: str
    unit: Literal["USD", "BTC", "fraction"]
    resample: Resample
    field: str | None
    scale: float = 1.0
    positive: Literal["no", "nonnegative", "strict"] = "nonnegative"


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
    publication_lag_ms
        How long after the close a bar is published at the earliest; models when a bar that was only seen as
        history could have been known.
    unsettled_rows
        How many of the last closed rows of an answer may still move.
    """

    name: str
    title: str
    description: str
    columns: tuple[Column, ...]
    endpoint: str | None
    params: Mapping[str, str]
    publication_lag_ms: int = 0
    unsettled_rows: int = 1

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the stored values, in order."""
        return tuple(column.name for column in self.columns)


def _ohlc(
    unit: Literal["USD", "fraction"], scale: float = 1.0, positive: Literal["no", "strict"] = "strict"
) -> tuple[Column, ...]:
    rules: tuple[tuple[str, Resample], ...] = (("open", "first"), ("high", "max"), ("low", "min"), ("close", "last"))
    return tuple(Column(name, unit, rule, name, scale, positive) for name, rule in rules)


_EXCHANGES: Final = "Binance,OKX,Bybit"

_SPECS: Final = (
    SeriesSpec(
        name="price",
        title="Perpetual price",
        description="Traded price and turnover of the BTCUSDT perpetual on Binance.",
        columns=(
            *_ohlc("USD"),
            Column("volume_usd", "USD", "sum", "volume_usd"),
            Column("volume_btc", "BTC", "sum", None),
        ),
        endpoint="/api/futures/price/history",
        params={"exchange": "Binance", "symbol": "{pair}"},
    ),
    SeriesSpec(
        name="open_interest",
        title="Aggregated open interest",
        description="Open interest over all exchanges and both margin kinds, in USD.",
        columns=_ohlc("USD"),
        endpoint="/api/futures/open-interest/aggregated-history",
        params={"symbol": "{symbol}", "unit": "usd"},
    ),
    SeriesSpec(
        name="funding_rate",
        title="OI-weighted funding rate",
        description=(
            "Running (predicted) funding rate over all exchanges, weighted by open interest; Coinglass serves "
            "percent per interval, stored as a fraction."
        ),
        columns=_ohlc("fraction", 0.01, "no"),
        endpoint="/api/futures/funding-rate/oi-weight-history",
        params={"symbol": "{symbol}"},
    ),
    SeriesSpec(
        name="long_short_ratio",
        title="Global long/short account ratio",
        description=(
            "Shares of accounts that are long and short on Binance; Coinglass serves percent, stored as a fraction. "
            "The ratio is long_share / short_share (the served one is rounded to two decimals)."
        ),
        columns=(
            Column("long_share", "fraction", "last", "global_account_long_percent", 0.01),
            Column("short_share", "fraction", "last", "global_account_short_percent", 0.01),
        ),
        endpoint="/api/futures/global-long-short-account-ratio/history",
        params={"exchange": "Binance", "symbol": "{pair}"},
    ),
    SeriesSpec(
        name="liquidations",
        title="Aggregated liquidations",
        description=f"Liquidated value of longs and of shorts per bar on {_EXCHANGES.replace(',', ', ')}, in USD.",
        columns=(
            Column("long_usd", "USD", "sum", "aggregated_long_liquidation_usd"),
            Column("short_usd", "USD", "sum", "aggregated_short_liquidation_usd"),
        ),
        endpoint="/api/futures/liquidation/aggregated-history",
        params={"exchange_list": _EXCHANGES, "symbol": "{symbol}"},
    ),
    SeriesSpec(
        name="taker_volume",
        title="Aggregated taker volume",
        description=f"Value bought and sold by takers per bar on {_EXCHANGES.replace(',', ', ')}, in USD.",
        columns=(
            Column("buy_usd", "USD", "sum", "aggregated_buy_volume_usd"),
            Column("sell_usd", "USD", "sum", "aggregated_sell_volume_usd"),
        ),
        endpoint="/api/futures/aggregated-taker-buy-sell-volume/history",
        params={"exchange_list": _EXCHANGES, "symbol": "{symbol}", "unit": "usd"},
    ),
    SeriesSpec(
        name="funding_settled",
        title="Settled funding rate",
        description=(
            "Funding rate that was paid at ts, as a fraction of position value; positive: longs pay shorts. "
            "Recorded history only; where it is absent the backtest pays the running rate at 00:00, 08:00, 16:00 UTC."
        ),
        columns=(Column("rate", "fraction", "sum", None, 1.0, "no"),),
        endpoint=None,
        params={},
    ),
)

CATALOGUE: Final[Mapping[str, SeriesSpec]] = {spec.name: spec for spec in _SPECS}


def series_spec(name: str) -> SeriesSpec:
    """Return the catalogue's entry of a series.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UsageError(f"series {name!r} is not in the catalogue; choose one of {', '.join(CATALOGUE)}") from None
