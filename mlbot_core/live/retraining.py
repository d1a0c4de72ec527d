"""Which models are older than their retraining interval."""

from __future__ import annotations

from dataclasses import dataclass

from mlbot_core.config import Settings
from mlbot_core.timeframe import DAY_MS, Market, Timeframe
from mlbot_core.warehouse import Warehouse
from mlbot_core.warehouse.windows import exists


@dataclass(frozen=True)
class Aged:
    """A model in use and the age of its newest training.

    Parameters
    ----------
    age_days, interval_days
        Since it was trained, and after how many it is to be trained again.
    """

    market: Market
    model_type: str
    age_days: float
    interval_days: int

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return self.age_days >= self.interval_days


def ages(store: Warehouse, settings: Settings, source: str) -> list[Aged]:
    """Return every model of the configured markets that was trained at least once, the oldest first.

    The interval is the length of a test window of the walk forward: a model is in use live as long as in a backtest.
    """
    if not store.path.exists():
        return []
    with store.read() as con:
        if not exists(con, "models"):
            return []
        rows = con.execute(
            "SELECT symbol, timeframe, model_type, max(created_at) FROM models WHERE source = ? GROUP BY ALL", [source]
        ).fetchall()
    now = store.clock.now_ms()
    found = []
    for symbol, timeframe, model_type, created_ms in rows:
        market = Market(symbol, Timeframe.parse(timeframe))
        if market in settings.intervals.markets:
            interval = settings.models.walk_forward.of(model_type).test_days
            found.append(Aged(market, model_type, (now - int(created_ms)) / DAY_MS, interval))
    return sorted(found, key=lambda one: (-one.age_days, str(one.market), one.model_type))
