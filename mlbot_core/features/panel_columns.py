"""What enters the panel: which column of which series, under which name, and how its bars are carried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mlbot_core.market.catalogue import series_spec
from mlbot_core.timeframe import DAY_MS, Timeframe

CARRY_DAYS: Final = 3
"""How long a longer bar is used after it opened, unless its series says otherwise: so a series that has ended is
missing soon, and what a row holds never depends on how far back somebody happened to read."""


@dataclass(frozen=True)
class PanelSource:
    """How one series enters the panel.

    Parameters
    ----------
    age
        Panel column of the hours from the joined bar's close to the row's close; None for prices.
    columns
        {panel column: catalogue column}.
    spread
        Panel columns whose total over a longer bar is spread evenly over the rows it covers, so that a value means
        "per bar of this panel" and a sum over rows means the same whatever the length of the stored bars.
    carry_days
        How long a longer bar is used after it opened.
    """

    age: str | None
    columns: Mapping[str, str]
    spread: frozenset[str] = frozenset()
    carry_days: int = CARRY_DAYS


def _total(age: str, columns: Mapping[str, str]) -> PanelSource:
    return PanelSource(age, columns, frozenset(columns))


def _sides(prefix: str, first: str, second: str) -> dict[str, str]:
    return {f"{prefix}_{name}": name for name in (first, second)}


_OHLC: Final = ("open", "high", "low", "close")
_DEPTH: Final = ("bids_usd", "bids_coin", "asks_usd", "asks_coin")

SOURCES: Final[Mapping[str, PanelSource]] = {
    "price": PanelSource(None, {name: name for name in (*_OHLC, "volume_usd", "volume_coin")}),
    "open_interest": PanelSource("oi_age_h", {"oi_usd": "close", "oi_high_usd": "high", "oi_low_usd": "low"}),
    "funding_rate": PanelSource(
        "funding_age_h", {"funding_rate": "close", "funding_high": "high", "funding_low": "low"}
    ),
    "funding_settled": PanelSource("funding_settled_age_h", {"funding_settled": "rate"}),
    "long_short_ratio": PanelSource("ratio_age_h", {"long_share": "long_share"}),
    "liquidations": _total("liq_age_h", _sides("liq", "long_usd", "short_usd")),
    "taker_volume": _total("taker_age_h", _sides("taker", "buy_usd", "sell_usd")),
    "spot_price": PanelSource(
        "spot_age_h", {"spot_close": "close", "spot_volume_usd": "volume_usd"}, frozenset({"spot_volume_usd"})
    ),
    "open_interest_pair": PanelSource("oi_pair_age_h", {"oi_pair_usd": "close", "oi_pair_coin": "close_coin"}),
    "open_interest_stablecoin": PanelSource("oi_stable_age_h", {"oi_stable_coin": "close"}),
    "open_interest_coin_margin": PanelSource("oi_coinm_age_h", {"oi_coinm_usd": "close"}),
    "funding_rate_pair": PanelSource("funding_pair_age_h", {"funding_pair": "close"}),
    "funding_rate_volume": PanelSource("funding_volume_age_h", {"funding_volume": "close"}),
    "top_account_ratio": PanelSource("top_account_age_h", {"top_account_share": "long_share"}),
    "top_position_ratio": PanelSource("top_position_age_h", {"top_position_share": "long_share"}),
    "liquidations_pair": _total("liq_pair_age_h", _sides("liq_pair", "long_usd", "short_usd")),
    "taker_volume_pair": _total("taker_pair_age_h", _sides("taker_pair", "buy_usd", "sell_usd")),
    "taker_volume_spot": _total("taker_spot_age_h", _sides("taker_spot", "buy_usd", "sell_usd")),
    "order_book": PanelSource("book_age_h", {f"book_{name}": name for name in _DEPTH}),
    "order_book_aggregated": PanelSource("book_all_age_h", {f"book_all_{name}": name for name in _DEPTH}),
    "coinbase_premium": PanelSource("coinbase_age_h", {"coinbase_premium": "premium_rate"}),
    "bitfinex_margin": PanelSource("margin_age_h", _sides("margin", "long_coin", "short_coin")),
    "borrow_rate": PanelSource("borrow_age_h", {"borrow_rate": "rate"}),
    "whale_index": PanelSource("whale_age_h", {"whale_index": "value"}),
    "fear_greed": PanelSource("fear_greed_age_h", {"fear_greed": "value"}),
    # Thursday's flow is the newest there is until the Tuesday noon after a long Easter weekend, or longer
    "etf_flows": PanelSource("etf_age_h", {"etf_flow_usd": "flow_usd"}, carry_days=8),
    "options_oi": PanelSource("options_age_h", {"options_oi_usd": "oi_usd"}),
    "mark_price": PanelSource("mark_age_h", {"mark_close": "close"}),
    "index_price": PanelSource("index_age_h", {"index_close": "close"}),
    "premium_index": PanelSource("premium_age_h", {"premium_index": "close"}),
}

VALUE_COLUMNS: Final = tuple(name for source in SOURCES.values() for name in source.columns)
AGE_COLUMNS: Final = tuple(source.age for source in SOURCES.values() if source.age is not None)
PANEL_COLUMNS: Final = ("ts", *VALUE_COLUMNS, *AGE_COLUMNS, "late")

COLUMN_SERIES: Final[Mapping[str, str]] = {
    column: series
    for series, source in SOURCES.items()
    for column in (*source.columns, *(() if source.age is None else (source.age,)))
}
"""Which series a panel column comes from; ``ts`` and ``late`` come from the grid itself."""


def joins_as_of(series: str, timeframe: Timeframe, market: Timeframe) -> bool:
    """Return whether a series joins by what was known at decision time: its bars are longer, or only on some days."""
    return timeframe != market or series_spec(series).sparse != "no"


def bars_behind(series: str, timeframe: Timeframe, settle_delay_ms: int) -> int:
    """Return how many bars before a row's own the newest bar is that the series can have at the row's decision time.

    0 for most; 1 for a series whose newest closed bar still moves, so that nobody has it before the next has closed.
    """
    return max(0, -(-(series_spec(series).lag_ms(timeframe) - settle_delay_ms) // timeframe.ms))


def carry_ms(series: str, timeframe: Timeframe) -> int:
    """Return for how long after its open a bar of ``timeframe`` is used in an as-of join, ms."""
    return max(SOURCES[series].carry_days * DAY_MS, 3 * timeframe.ms)


def read_margin_ms(series: str, timeframe: Timeframe, market: Timeframe, settle_delay_ms: int) -> int:
    """Return how much earlier than the panel's first row a series must be read, ms, so that no row lacks a bar.

    ``timeframe`` is that of the stored bars. A longer margin changes nothing, a shorter one makes the first rows
    depend on where the reading began.
    """
    if joins_as_of(series, timeframe, market):
        return carry_ms(series, timeframe)
    return bars_behind(series, timeframe, settle_delay_ms) * timeframe.ms
