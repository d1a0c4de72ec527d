"""Open points of the Coinglass reference (its sections 1 to 5), asked with the configured key; all of it is reading."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from mlbot_core.clock import Clock, format_utc
from mlbot_core.execution.probe_http import CoinglassAsker, Heard
from mlbot_core.execution.probe_questions import Found, Question, told
from mlbot_core.timeframe import DAY_MS, HOUR_MS

_FOUR: Final = 4 * HOUR_MS
_PAIR: Final = {"exchange": "Binance", "symbol": "BTCUSDT"}
_COIN: Final = {"symbol": "BTC"}
_LIST: Final = {"symbol": "BTC", "exchange_list": "Binance,OKX,Bybit"}
_PRICE: Final = "/api/futures/price/history"
# The series that the product reads, with what their endpoints need.
SERIES: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    (_PRICE, _PAIR),
    ("/api/futures/open-interest/aggregated-history", _COIN),
    ("/api/futures/funding-rate/oi-weight-history", _COIN),
    ("/api/futures/global-long-short-account-ratio/history", _PAIR),
    ("/api/futures/liquidation/aggregated-history", _LIST),
    ("/api/futures/aggregated-taker-buy-sell-volume/history", _LIST),
    ("/api/futures/orderbook/ask-bids-history", {**_PAIR, "range": "1"}),
)
_CALLS: Final = {"HOBBYIST": 30, "STARTUP": 80, "STANDARD": 300, "PROFESSIONAL": 1200}


@dataclass(frozen=True)
class CoinglassProbe:
    """Whom to ask."""

    asker: CoinglassAsker
    clock: Clock

    def bars(self, path: str, params: dict[str, str], **more: str | int) -> tuple[Heard, list[dict[str, Any]]]:
        """Ask for bars."""
        heard = self.asker.get(path, **{**params, **more})
        rows = heard.data if heard.good and isinstance(heard.data, list) else []
        return heard, [row for row in rows if isinstance(row, dict)]

    def grid(self, back: int) -> int:
        """Return the open time of the 4-hour bar ``back`` bars ago."""
        return self.clock.now_ms() // _FOUR * _FOUR - back * _FOUR


def _plan(probe: CoinglassProbe) -> Found:
    heard = probe.asker.get("/api/user/account/subscription")
    if not heard.good:
        return told(heard, "", expected=None)
    level, until = str(heard.data["level"]), int(heard.data["expire_time"])
    good = not heard.data["expired"] and until > probe.clock.now_ms()
    return told(heard, f"plan {level} until {format_utc(until)}", expected=good)


def _calls(probe: CoinglassProbe) -> Found:
    heard = probe.asker.get("/api/user/account/subscription")
    level = str(heard.data["level"]).upper() if heard.good else ""
    most, used = (heard.headers.get(f"api-key-{name}-limit", "") for name in ("max", "use"))
    documented = _CALLS.get(level)
    expected = None if not most.isdigit() or documented is None else int(most) == documented
    return told(
        heard, f"allowed {most or '-'} a minute, used {used or '-'}; documented {documented}", expected=expected
    )


def _native(probe: CoinglassProbe) -> Found:
    native, refused, odd = [], [], []
    for path, params in SERIES:
        heard, rows = probe.bars(path, params, interval="2h", limit=3)
        name = path.removeprefix("/api/futures/")
        stamps = [int(row["time"]) for row in rows]
        steps = {after - before for before, after in pairwise(stamps)}
        if heard.good and steps == {2 * HOUR_MS} and not stamps[0] % (2 * HOUR_MS):
            native.append(name)
        elif heard.good:
            odd.append(name)
        else:
            refused.append(f"{name} ({heard.code or heard.message})")
    text = "; ".join(
        f"{name}: {', '.join(found) or 'none'}"
        for name, found in zip(("native", "refused", "odd"), (native, refused, odd), strict=True)
    )
    return Found("interval=2h&limit=3 of each series", text, "differs" if odd else "as_expected")


def _open_bar(probe: CoinglassProbe) -> Found:
    heard, rows = probe.bars(_PRICE, _PAIR, interval="4h", limit=3)
    if not rows:
        return told(heard, "no rows", expected=None)
    last, ascending = int(rows[-1]["time"]), [int(row["time"]) for row in rows] == sorted(int(r["time"]) for r in rows)
    is_open = last + _FOUR > probe.clock.now_ms()
    text = f"the last row is {'open' if is_open else 'closed'}, order {'ascending' if ascending else 'not ascending'}"
    return told(heard, text, expected=is_open and ascending)


def _bounds(probe: CoinglassProbe) -> Found:
    first, last = probe.grid(12), probe.grid(8)
    heard, rows = probe.bars(_PRICE, _PAIR, interval="4h", limit=20, start_time=first, end_time=last)
    stamps = {int(row["time"]) for row in rows}
    shown = [f"{name} {'in' if at in stamps else 'out'}" for name, at in (("start", first), ("end", last))]
    inner = {first + _FOUR, first + 2 * _FOUR, first + 3 * _FOUR}
    return told(heard, f"{', '.join(shown)}; {len(rows)} rows", expected=inner <= stamps <= inner | {first, last})


def _overfull(probe: CoinglassProbe) -> Found:
    first, last = probe.grid(20), probe.grid(10)
    heard, rows = probe.bars(_PRICE, _PAIR, interval="4h", limit=3, start_time=first, end_time=last)
    stamps = [int(row["time"]) for row in rows]
    if not stamps:
        return told(heard, "no rows", expected=None)
    kept = "oldest" if stamps[0] <= first + _FOUR else "newest" if stamps[-1] >= last - _FOUR else "middle"
    return told(heard, f"of 11 bars with limit 3 the {kept} are kept ({len(stamps)} rows)", expected=len(stamps) <= 3)


def _large(probe: CoinglassProbe) -> Found:
    heard, rows = probe.bars(_PRICE, _PAIR, interval="4h", limit=1500)
    text = f"limit 1500 gives {len(rows)} rows" if heard.good else f"limit 1500: {heard.refusal}"
    return Found(heard.asked, text, "as_expected" if len(rows) <= 1500 else "differs")


def _depth(probe: CoinglassProbe) -> Found:
    first = probe.grid(0) - 800 * DAY_MS // _FOUR * _FOUR
    heard, rows = probe.bars(_PRICE, _PAIR, interval="4h", limit=1000, start_time=first, end_time=first + 900 * _FOUR)
    text = f"from {format_utc(first)}: {len(rows)} rows" + (
        f", first {format_utc(int(rows[0]['time']))}" if rows else ""
    )
    return told(heard, text, expected=True)


def _spelling(interval: str) -> Callable[[CoinglassProbe], Found]:
    def ask(probe: CoinglassProbe) -> Found:
        heard, rows = probe.bars(_PRICE, _PAIR, interval=interval, limit=3)
        return Found(heard.asked, f"{len(rows)} rows" if heard.good else heard.refusal, "as_expected")

    return ask


def _unit(probe: CoinglassProbe) -> Found:
    path = "/api/futures/open-interest/history"
    bare, rows = probe.bars(path, _PAIR, interval="4h", limit=3)
    _, usd = probe.bars(path, _PAIR, interval="4h", limit=3, unit="usd")
    if len(rows) < 2 or len(usd) < 2:
        return told(bare, "no rows", expected=None)
    same = float(rows[-2]["close"]) == float(usd[-2]["close"])
    return told(bare, f"without unit {rows[-2]['close']}, with unit=usd {usd[-2]['close']}", expected=same)


def _stablecoin(probe: CoinglassProbe) -> Found:
    heard, rows = probe.bars("/api/futures/open-interest/aggregated-stablecoin-history", _LIST, interval="4h", limit=3)
    if not rows:
        return told(heard, "no rows", expected=None)
    value = float(rows[0]["close"])
    return told(heard, f"close {value:g}: {'coins' if value < 1e8 else 'USD'}", expected=value < 1e8)


def _funding(probe: CoinglassProbe) -> Found:
    heard, rows = probe.bars("/api/futures/funding-rate/oi-weight-history", _COIN, interval="4h", limit=100)
    if not rows:
        return told(heard, "no rows", expected=None)
    typical = statistics.median(abs(float(row["close"])) for row in rows)
    return told(
        heard, f"median size {typical:g}: {'percent' if typical > 5e-4 else 'fraction'}", expected=typical > 5e-4
    )


def _top_on_bybit(probe: CoinglassProbe) -> Found:
    params = {"exchange": "Bybit", "symbol": "BTCUSDT"}
    heard, rows = probe.bars("/api/futures/top-long-short-position-ratio/history", params, interval="4h", limit=3)
    return Found(heard.asked, f"{len(rows)} rows" if heard.good else heard.refusal, "as_expected")


def _seconds(path: str, params: dict[str, str], field: str = "time") -> Callable[[CoinglassProbe], Found]:
    def ask(probe: CoinglassProbe) -> Found:
        heard, rows = probe.bars(path, params, interval="4h", limit=3)
        if not rows:
            return told(heard, "no rows", expected=None)
        stamp = int(rows[-1][field])
        return told(heard, f"{field} {stamp}: {'seconds' if stamp < 1e11 else 'ms'}", expected=stamp < 1e11)

    return ask


def _premium(probe: CoinglassProbe) -> Found:
    heard, rows = probe.bars("/api/coinbase-premium-index", {}, interval="4h", limit=20)
    _, prices = probe.bars(_PRICE, _PAIR, interval="4h", limit=3)
    if not rows or not prices:
        return told(heard, "no rows", expected=None)
    row = max(rows, key=lambda one: abs(float(one["premium"])))
    percent = float(row["premium"]) / float(prices[-1]["close"]) * 100
    rate = float(row["premium_rate"])
    near = abs(rate - percent) < 0.3 * abs(percent) + 1e-4
    return told(heard, f"premium_rate {rate:g}, premium over price {percent:g} percent", expected=near)


def _borrow(probe: CoinglassProbe) -> Found:
    params = {"exchange": "Binance", "symbol": "BTC"}
    heard, rows = probe.bars("/api/borrow-interest-rate/history", params, interval="4h", limit=10)
    if not rows:
        return told(heard, "no rows", expected=None)
    return told(heard, f"interest_rate {rows[-1]['interest_rate']}", expected=None)


def _basis(probe: CoinglassProbe) -> Found:
    heard, rows = probe.bars("/api/futures/basis/history", _PAIR, interval="4h", limit=50)
    if not rows:
        return told(heard, "no rows", expected=None)
    most = max(abs(float(row["close_basis"])) for row in rows)
    return told(heard, f"largest close_basis {most:g} percent", expected=most < 2)


def _greed(probe: CoinglassProbe) -> Found:
    heard = probe.asker.get("/api/index/fear-greed-history")
    inner = heard.data[0] if isinstance(heard.data, list) and heard.data else heard.data
    good = isinstance(inner, dict) and {"data_list", "time_list"} <= set(inner)
    return told(
        heard, f"data is {type(heard.data).__name__} with {sorted(inner)[:5] if inner else 'nothing'}", expected=good
    )


def _types(probe: CoinglassProbe) -> Found:
    heard, rows = probe.bars(_PRICE, _PAIR, interval="4h", limit=3)
    kinds = sorted({f"{name} {type(value).__name__}" for row in rows for name, value in row.items()})
    return told(heard, ", ".join(kinds), expected=bool(rows))


def _wrong_pair(probe: CoinglassProbe) -> Found:
    heard, _ = probe.bars(_PRICE, {"exchange": "Binance", "symbol": "BTC"}, interval="4h", limit=3)
    return Found(heard.asked, "rows" if heard.good else heard.refusal, "differs" if heard.good else "as_expected")


COINGLASS: Final = (
    Question("plan", "Which plan, until when?", _plan, matters=True),
    Question("calls", "How many calls a minute?", _calls),
    Question("native_2h", "Which series take interval=2h?", _native, matters=True),
    Question("open_bar", "Is the last row the open bar, oldest first?", _open_bar, matters=True),
    Question("bounds", "Are start_time and end_time inclusive?", _bounds),
    Question("overfull", "Which end is kept when more bars than limit lie between?", _overfull),
    Question("limit_1500", "What does a limit above 1000 give?", _large),
    Question("depth", "What comes of a window older than the plan's depth?", _depth),
    Question("spelling_h4", "Is the old spelling h4 taken?", _spelling("h4")),
    Question("interval_1w", "Is 1w taken?", _spelling("1w")),
    Question("open_interest_unit", "Is usd the unit of open interest by default?", _unit),
    Question("stablecoin_coins", "Is stablecoin-margined open interest in coins?", _stablecoin),
    Question("funding_percent", "Is funding in percent?", _funding, matters=True),
    Question("top_ratio_bybit", "Are there top-trader ratios of Bybit?", _top_on_bybit),
    Question(
        "premium_seconds",
        "Is the time of the Coinbase premium in seconds?",
        _seconds("/api/coinbase-premium-index", {}),
    ),
    Question(
        "margin_seconds",
        "Is the time of Bitfinex margin in seconds?",
        _seconds("/api/bitfinex-margin-long-short", _COIN),
    ),
    Question("premium_percent", "Is premium_rate in percent?", _premium),
    Question("borrow_unit", "Is the borrow rate a percent or a fraction (0.01 percent a day is usual)?", _borrow),
    Question("basis", "Is the basis plausible?", _basis),
    Question("fear_greed", "Does fear and greed hold lists?", _greed),
    Question("types", "Which values of a price row are texts?", _types),
    Question("wrong_pair", "Is a coin refused where a pair is wanted?", _wrong_pair),
)
