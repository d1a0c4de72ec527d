"""A model is due when it is older than the test windows it was judged on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.live.retraining import ages
from mlbot_core.timeframe import DAY_MS
from mlbot_core.warehouse import Warehouse

NOW = parse_utc_ms("2024-05-01")


def test_the_newest_training_of_each_model_counts(tmp_path: Path) -> None:
    settings = load_settings({"MLBOT_HOME": str(tmp_path)})
    store = Warehouse(settings.warehouse_path, FixedClock(NOW))
    assert ages(store, settings, "emulator") == []
    rows = [
        ("emulator", "BTC", "2h", "lightgbm", NOW - 90 * DAY_MS),
        ("emulator", "BTC", "2h", "lightgbm", NOW - 10 * DAY_MS),
        ("emulator", "BTC", "4h", "tft", NOW - 40 * DAY_MS),
        ("emulator", "BTC", "12h", "lightgbm", NOW - 400 * DAY_MS),
        ("archive", "BTC", "2h", "catboost", NOW - 400 * DAY_MS),
    ]
    names = ("source", "symbol", "timeframe", "model_type", "created_at")
    with store.write() as con:
        con.register("made", pa.table({name: [row[i] for row in rows] for i, name in enumerate(names)}))
        con.execute("CREATE TABLE models AS SELECT * FROM made")
    found = {(str(one.market), one.model_type): one for one in ages(store, settings, "emulator")}
    assert set(found) == {("BTC-2h", "lightgbm"), ("BTC-4h", "tft")}
    schedule = settings.models.walk_forward
    lightgbm, tft = found["BTC-2h", "lightgbm"], found["BTC-4h", "tft"]
    assert (lightgbm.age_days, lightgbm.interval_days) == (10.0, schedule.of("lightgbm").test_days)
    assert (tft.age_days, tft.interval_days) == (40.0, schedule.of("tft").test_days)
    assert not lightgbm.due
    # the transformer is refitted quarterly
    assert not tft.due
    store.clock.set_ms(NOW + 51 * DAY_MS)
    assert all(one.due for one in ages(store, settings, "emulator"))
