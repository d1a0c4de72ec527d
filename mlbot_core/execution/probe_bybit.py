"""Open points of the Bybit reference that public questions answer (its sections 4, 10 and 11)."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from mlbot_core.clock import Clock, parse_utc_ms
from mlbot_core.config import Settings
from mlbot_core.execution.broker import Venue
from mlbot_core.execution.probe_http import BybitAsker, Heard
from mlbot_core.execution.probe_questions import Found, Question, told
from mlbot_core.timeframe import DAY_MS, HOUR_MS

_BAR_MS: Final = 2 * HOUR_MS
_FUNDING_MS: Final = 8 * HOUR_MS
# When the documentation began to call open interest the sum of both sides.
_BOTH_SIDES_MS: Final = parse_utc_ms("2026-06-01")


@dataclass(frozen=True)
class BybitProbe:
    """Whom to ask, and what is believed so far."""

    asker: BybitAsker
    settings: Settings
    clock: Clock
    venue: Venue

    @property
    def contract(self) -> str:
        """The configured contract."""
        return self.settings.execution.contract

    def market(self, path: str, **params: str | int) -> Heard:
        """Ask a public question about the contract."""
        return self.asker.get(f"/v5/market/{path}", category="linear", symbol=self.contract, **params)

    def row(self, heard: Heard) -> dict[str, Any]:
        """Return the first row of an answer."""
        return dict(heard.data["list"][0]) if heard.good else {}


def _clock(probe: BybitProbe) -> Found:
    heard = probe.asker.get("/v5/market/time")
    if not heard.good or heard.server_ms is None:
        return told(heard, "", expected=None)
    trip = heard.heard_ms - heard.sent_ms
    offset = (heard.sent_ms + heard.heard_ms) // 2 - heard.server_ms
    most = probe.settings.risk.gate.max_clock_offset_ms
    return told(heard, f"ours is {offset:+d} ms off, round trip {trip} ms", expected=abs(offset) + trip // 2 <= most)


def _instrument(probe: BybitProbe) -> Found:
    heard = probe.market("instruments-info")
    row = probe.row(heard)
    if not row:
        return told(heard, "", expected=None)
    lots, prices = row["lotSizeFilter"], row["priceFilter"]
    shown = {"lot": lots["qtyStep"], "tick": prices["tickSize"], "min_notional": lots["minNotionalValue"]}
    believed = probe.settings.fees.instruments.get(probe.settings.execution.symbol)
    same = believed is not None and all(
        Decimal(text) == Decimal(str(getattr(believed, name))) for name, text in shown.items()
    )
    text = ", ".join(f"{name} {value}" for name, value in {**shown, "status": row["status"]}.items())
    return told(heard, text, expected=same and row["status"] == "Trading")


def _funding_interval(probe: BybitProbe) -> Found:
    heard = probe.market("tickers")
    row = probe.row(heard)
    if not row:
        return told(heard, "", expected=None)
    hours, following = row["fundingIntervalHour"], int(row["nextFundingTime"])
    return told(
        heard,
        f"every {hours} h, next {following} (on the grid: {following % _FUNDING_MS == 0}), rate {row['fundingRate']}",
        expected=str(hours) == "8" and following % _FUNDING_MS == 0,
    )


def _kline(probe: BybitProbe, **params: str | int) -> tuple[Heard, list[int]]:
    heard = probe.market("kline", interval="120", **params)
    return heard, [int(row[0]) for row in heard.data["list"]] if heard.good else []


def _truncation(probe: BybitProbe) -> Found:
    end = probe.clock.now_ms() // _BAR_MS * _BAR_MS - _BAR_MS
    start = end - 9 * _BAR_MS
    heard, stamps = _kline(probe, start=start, end=end, limit=3)
    newest = [end - n * _BAR_MS for n in range(3)]
    oldest = [start + n * _BAR_MS for n in range(2, -1, -1)]
    kept = "newest" if stamps == newest else "oldest" if stamps == oldest else f"neither end: {stamps}"
    return told(heard, f"of 10 bars with limit 3 the {kept} are kept", expected=stamps in (newest, oldest))


def _inside(probe: BybitProbe) -> Found:
    bar = probe.clock.now_ms() // _BAR_MS * _BAR_MS - 5 * _BAR_MS
    heard, stamps = _kline(probe, start=bar + HOUR_MS, end=bar + 3 * _BAR_MS, limit=10)
    text = f"a start one hour into a bar {'returns' if bar in stamps else 'leaves out'} that bar; {len(stamps)} bars"
    return told(heard, text, expected=bool(stamps) and stamps[-1] == bar and stamps[0] == bar + 3 * _BAR_MS)


def _start_alone(probe: BybitProbe) -> Found:
    bar = probe.clock.now_ms() // _BAR_MS * _BAR_MS - 20 * _BAR_MS
    heard, stamps = _kline(probe, start=bar, limit=2)
    return told(heard, f"start alone with limit 2 gives {stamps}", expected=stamps == [bar + _BAR_MS, bar])


def _open_bar(probe: BybitProbe) -> Found:
    heard, stamps = _kline(probe, limit=2)
    if not stamps:
        return told(heard, "no bars", expected=False)
    is_open = stamps[0] + _BAR_MS > (heard.server_ms or heard.heard_ms)
    return told(heard, f"the newest bar is {'open' if is_open else 'closed'}", expected=is_open)


def _funding_start(probe: BybitProbe) -> Found:
    heard = probe.market("funding/history", startTime=probe.clock.now_ms() - DAY_MS)
    text = "rows" if heard.good else heard.refusal
    verdict = "differs" if heard.good else "as_expected" if heard.code == "10001" else "unknown"
    return Found(heard.asked, f"start time alone: {text}", verdict)  # type: ignore[arg-type]


def _sides(probe: BybitProbe) -> Found:
    heard = probe.market("tickers")
    row = probe.row(heard)
    if not row:
        return told(heard, "", expected=None)
    both, one = Decimal(row["openInterest"]), Decimal(row["singleOpenInterest"])
    return told(
        heard, f"openInterest / singleOpenInterest = {both / one:.4f}", expected=abs(both / one - 2) < Decimal("0.01")
    )


def _doubled(probe: BybitProbe) -> Found:
    def median(first: int) -> tuple[Heard, float | None]:
        heard = probe.market("open-interest", intervalTime="1h", startTime=first, endTime=first + 7 * DAY_MS, limit=200)
        values = [float(row["openInterest"]) for row in heard.data["list"]] if heard.good else []
        return heard, statistics.median(values) if values else None

    heard, before = median(_BOTH_SIDES_MS - 14 * DAY_MS)
    after_heard, after = median(_BOTH_SIDES_MS + 14 * DAY_MS)
    if not (heard.good and after_heard.good) or not before or after is None:
        return told(heard, "no history on both sides of 2026-06", expected=None)
    ratio = after / before
    meaning = "doubled" if ratio > 1.6 else "merely described anew" if 0.6 < ratio < 1.4 else "not clear"
    text = f"median of a week after over before 2026-06: {ratio:.2f}, so history was {meaning}"
    return told(heard, text, expected=None if meaning == "not clear" else True)


def _risk_units(probe: BybitProbe) -> Found:
    heard = probe.market("risk-limit")
    row = probe.row(heard)
    if not row:
        return told(heard, "", expected=None)
    product = Decimal(row["initialMargin"]) * Decimal(row["maxLeverage"])
    unit = "percent" if 50 < product < 200 else "fraction" if Decimal("0.5") < product < 2 else "neither"
    rate = Decimal(row["maintenanceMargin"]) / (100 if unit == "percent" else 1)
    text = f"initialMargin x maxLeverage = {product}: {unit}; first tier's maintenance {rate}"
    return told(heard, text, expected=unit != "neither")


def _maintenance(probe: BybitProbe) -> Found:
    heard = probe.market("risk-limit")
    row = probe.row(heard)
    believed = probe.settings.fees.instruments.get(probe.settings.execution.symbol)
    if not row or believed is None or not believed.maintenance:
        return told(heard, "nothing to compare with in fees.yaml", expected=None)
    percent = Decimal(row["initialMargin"]) * Decimal(row["maxLeverage"]) > 10
    rate = Decimal(row["maintenanceMargin"]) / (100 if percent else 1)
    mine = believed.maintenance[0]
    text = f"first tier up to {row['riskLimitValue']} at {rate}; fees.yaml has up to {mine.up_to:g} at {mine.rate:g}"
    same = rate == Decimal(str(mine.rate)) and Decimal(row["riskLimitValue"]) == Decimal(str(mine.up_to))
    return told(heard, text, expected=same)


def _band(probe: BybitProbe) -> Found:
    heard, ticker = probe.market("price-limit"), probe.row(probe.market("tickers"))
    if not heard.good or not ticker:
        return told(heard, "", expected=None)
    mark = Decimal(ticker["markPrice"])
    up, down = Decimal(heard.data["buyLmt"]) / mark - 1, Decimal(heard.data["sellLmt"]) / mark - 1
    most = Decimal(str(probe.settings.risk.gate.price_band))
    # where the exchange's band is the wider one, ours is what holds
    return told(
        heard, f"buys up to {up:+.3%}, sells down to {down:+.3%} of mark; ours is {most:.1%}", expected=up > 0 > down
    )


PUBLIC: Final = (
    Question("clock", "How far is this machine's clock from the exchange's?", _clock, matters=True),
    Question("instrument", "Are lot, tick and smallest value those of fees.yaml?", _instrument, matters=True),
    Question("funding_interval", "Is funding settled every 8 hours?", _funding_interval, matters=True),
    Question("kline_truncation", "Which end is kept when both bounds hold more bars than limit?", _truncation),
    Question("kline_start_inside", "Does a start inside a bar return that bar?", _inside),
    Question("kline_start_alone", "Does a start alone return the oldest bars from it?", _start_alone),
    Question("kline_open_bar", "Is the newest bar the open one?", _open_bar),
    Question("funding_start_alone", "Is a start time alone an error?", _funding_start),
    Question("open_interest_sides", "Is openInterest the sum of both sides?", _sides),
    Question("open_interest_2026_06", "Was the history of open interest doubled in 2026-06?", _doubled),
    Question("risk_limit_units", "Are margins of risk-limit percents or fractions?", _risk_units),
    Question("maintenance", "Is the first maintenance tier that of fees.yaml?", _maintenance),
    Question("price_band", "How far from the mark price may an order be?", _band),
)
