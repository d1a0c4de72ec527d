"""Bars as the Coinglass endpoints write them: field names, units and JSON types of recorded answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import numpy as np

from mlbot_core.emulator.market import Bars, Floats

Row = dict[str, Any]

# Shares of the aggregated flow in percent; the price endpoint serves each exchange's own turnover.
EXCHANGES: Final[Mapping[str, int]] = {"Binance": 53, "OKX": 27, "Bybit": 20}
PAIRS: Final[Mapping[str, str]] = {"Binance": "{coin}USDT", "OKX": "{coin}-USDT-SWAP", "Bybit": "{coin}USDT"}
SPOT_PAIRS: Final[Mapping[str, str]] = {"Binance": "{coin}USDT", "OKX": "{coin}-USDT", "Bybit": "{coin}USDT"}


def _text(value: float, decimals: int) -> str:
    """Write a number as Coinglass quotes it: fixed decimals without trailing zeros."""
    return f"{value:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"


def _scaled(column: Floats, share: float, decimals: int) -> list[float]:
    return [round(float(value), decimals) for value in (column if share == 1.0 else column * share)]


def price_rows(bars: Bars, share: float) -> list[Row]:
    """OHLC in USD and turnover in USD, all quoted; ``share`` is the exchange's turnover over that of Binance."""
    names = ("open", "high", "low", "close")
    rows: list[Row] = []
    turnover = _scaled(bars.values["turnover"], share, 4)
    for i, ts in enumerate(bars.ts.tolist()):
        prices = {name: _text(float(bars.values[name][i]), 1) for name in names}
        rows.append({"time": ts, **prices, "volume_usd": _text(turnover[i], 4)})
    return rows


def open_interest_rows(bars: Bars, _share: float) -> list[Row]:
    """OHLC in whole USD, the close as a decimal number; the open bar's close has a fraction."""
    opens, highs, lows, closes = (bars.values[name] for name in ("open", "high", "low", "close"))
    highs, lows = np.ceil(highs), np.floor(lows)  # the open bar's extremes are whole too
    return [
        {"time": ts, "open": int(o), "high": int(h), "low": int(low), "close": round(float(c), 4)}
        for ts, o, h, low, c in zip(bars.ts.tolist(), opens, highs, lows, closes, strict=True)
    ]


def funding_rows(bars: Bars, _share: float) -> list[Row]:
    """OHLC of the running rate in percent per 8 hours."""
    columns = {name: _scaled(bars.values[name], 1.0, 6) for name in ("open", "high", "low", "close")}
    return _rows(bars, columns)


def account_rows(bars: Bars, _share: float) -> list[Row]:
    """Long and short accounts in percent, and their ratio, each with two decimals."""
    return _rows(bars, _ratio("global_account", bars.values["long_percent"]))


def liquidation_rows(bars: Bars, share: float) -> list[Row]:
    """Liquidated longs and shorts in USD."""
    return _rows(
        bars,
        {
            "aggregated_long_liquidation_usd": _scaled(bars.values["long"], share, 5),
            "aggregated_short_liquidation_usd": _scaled(bars.values["short"], share, 5),
        },
    )


def taker_rows(bars: Bars, share: float) -> list[Row]:
    """Taker buys and sells in USD."""
    return _rows(
        bars,
        {
            "aggregated_buy_volume_usd": _scaled(bars.values["buy"], share, 4),
            "aggregated_sell_volume_usd": _scaled(bars.values["sell"], share, 4),
        },
    )


def _rows(bars: Bars, columns: Mapping[str, list[Any]]) -> list[Row]:
    names = ("time", *columns)
    return [dict(zip(names, row, strict=True)) for row in zip(bars.ts.tolist(), *columns.values(), strict=True)]


# A served field: its name, the value of the bar, decimals, JSON type (s is a number in quotes), and a factor.
Field = tuple[str, str, int, Literal["s", "n", "i"], float]


def field(name: str, value: str, decimals: int, kind: Literal["s", "n", "i"] = "n", factor: float = 1.0) -> Field:
    """Return the description of one served field."""
    return (name, value, decimals, kind, factor)


def ohlc_fields(decimals: int, kind: Literal["s", "n", "i"] = "n", factor: float = 1.0) -> tuple[Field, ...]:
    """Return the four fields of OHLC rows."""
    return tuple(field(name, name, decimals, kind, factor) for name in ("open", "high", "low", "close"))


def table(
    *fields: Field, shared: tuple[str, ...] = (), percents: tuple[str, str] | None = None, mixed: bool = False
) -> Callable[[Bars, float], list[Row]]:
    """Return a builder of rows with ``time`` and the given fields.

    Parameters
    ----------
    fields
        What is served.
    shared
        Names of the fields that are multiplied by the exchanges' share.
    percents
        (prefix, value): adds the three fields of a long/short ratio with that prefix instead of ``fields``.
    mixed
        The open bar's last field comes as a number among quoted ones, as has been seen.
    """

    def build(bars: Bars, share: float) -> list[Row]:
        if percents is not None:
            return _rows(bars, _ratio(percents[0], bars.values[percents[1]]))
        columns: dict[str, list[Any]] = {}
        for name, value, decimals, kind, factor in fields:
            numbers = _scaled(bars.values[value] * factor, share if name in shared else 1.0, decimals)
            if kind == "s":
                columns[name] = [_text(number, decimals) for number in numbers]
            else:
                columns[name] = [int(number) for number in numbers] if kind == "i" else list(numbers)
        rows = _rows(bars, columns)
        if mixed and bars.open_last:
            rows[-1][fields[-1][0]] = float(rows[-1][fields[-1][0]])
        return rows

    return build


def _ratio(prefix: str, long_percent: Floats) -> dict[str, list[Any]]:
    longs = _scaled(long_percent, 1.0, 2)
    shorts = [round(100.0 - value, 2) for value in longs]
    ratios = [round(long / short, 2) for long, short in zip(longs, shorts, strict=True)]
    return {f"{prefix}_long_percent": longs, f"{prefix}_short_percent": shorts, f"{prefix}_long_short_ratio": ratios}
