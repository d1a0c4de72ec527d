"""One bar from its lookback equals the batch, is repeatable bit for bit, and sees what its decision saw."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mlbot_core.errors import MissingDataError, QualityRefusedError
from mlbot_core.features import FeatureSet, SettledSeries, build_features, build_panel, feature_set
from mlbot_core.features.incremental import Decision, LiveRow, latest_rows, live_row, read_lookback, same_bits
from mlbot_core.features.inputs import series_needed
from mlbot_core.features.truncation import between
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Market, Month
from mlbot_core.warehouse import Warehouse

HOURLY = Market.parse("BTC-1h")
DELAY = 5_000
WINDOW = 240
CORE = feature_set("core", WINDOW)
FULL = feature_set("full", WINDOW)


def batch(inputs: dict[str, SettledSeries], features: FeatureSet) -> pd.DataFrame:
    ts = inputs["price"].ts
    return build_features(build_panel(inputs, HOURLY, int(ts[0]), int(ts[-1]) + HOUR_MS, DELAY), features)


def one_by_one(
    inputs: dict[str, SettledSeries], features: FeatureSet, moments: np.ndarray, rows: pd.DataFrame
) -> tuple[int, float]:
    """Compute each bar from its lookback twice; return how many values were known and the worst relative error."""
    by_ts = rows.set_index("ts")
    known, worst = 0, 0.0
    for moment in moments:
        decision = Decision("archive", HOURLY, int(moment), DELAY)
        start = int(moment) - features.lookback * HOUR_MS
        window = {name: between(one, start - 10 * DAY_MS, int(moment) + HOUR_MS) for name, one in inputs.items()}
        first, _ = latest_rows(window, decision, features)
        again, _ = latest_rows(window, decision, features)
        assert same_bits(first, again)
        assert first["ts"].tolist() == [moment]
        got, want = first[list(features.names)].to_numpy()[0], by_ts.loc[moment, list(features.names)].to_numpy()
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), err_msg=str(moment))
        there = np.isfinite(want)
        known += int(there.sum())
        scale = np.where(want[there] == 0, 1.0, np.abs(want[there]))
        worst = max(worst, float((np.abs(got[there] - want[there]) / scale).max(initial=0.0)))
    return known, worst


@pytest.mark.parametrize("gap_share", [0.0, 0.03])
def test_the_last_bars_equal_the_batch(
    make_full_inputs: Callable[..., dict[str, SettledSeries]], gap_share: float
) -> None:
    inputs = make_full_inputs(FULL.lookback + 200, seed=11, gap_share=gap_share)
    known, worst = one_by_one(inputs, FULL, inputs["price"].ts[-12:], batch(inputs, FULL))
    assert known > 12 * 100
    assert worst <= 1e-9


@pytest.mark.slow
def test_the_last_500_bars_equal_the_batch_on_synthetic_data(
    make_full_inputs: Callable[..., dict[str, SettledSeries]],
) -> None:
    inputs = make_full_inputs(FULL.lookback + 600, seed=12, gap_share=0.01)
    known, worst = one_by_one(inputs, FULL, inputs["price"].ts[-500:], batch(inputs, FULL))
    assert known > 500 * 150
    assert worst <= 1e-9


@pytest.mark.slow
@pytest.mark.archive
def test_the_last_500_bars_equal_the_batch_on_recorded_data(archive_inputs: dict[str, SettledSeries]) -> None:
    end = int(archive_inputs["price"].ts[-1]) + HOUR_MS
    # the whole history would only make the batch slower: its rows depend on their lookback alone, as proved elsewhere
    start = end - (2 * FULL.lookback + 700) * HOUR_MS
    inputs = {name: between(one, start, end) for name, one in archive_inputs.items()}
    known, worst = one_by_one(archive_inputs, FULL, inputs["price"].ts[-500:], batch(inputs, FULL))
    assert known > 500 * 150
    assert worst <= 1e-9


def test_several_rows_at_once_are_the_rows_one_by_one(make_inputs: Callable[..., dict[str, SettledSeries]]) -> None:
    inputs = make_inputs(FULL.lookback + 60, seed=13)
    decision = Decision("archive", HOURLY, int(inputs["price"].ts[-1]), DELAY)
    several, _ = latest_rows(inputs, decision, CORE, rows=5)
    assert len(several) == 5
    for back in range(5):
        before = Decision("archive", HOURLY, decision.ts - back * HOUR_MS, DELAY)
        assert same_bits(latest_rows(inputs, before, CORE)[0], several.iloc[[4 - back]].reset_index(drop=True))


def test_the_last_rows_of_a_build_are_those_of_the_whole(make_full_panel: Callable[..., pd.DataFrame]) -> None:
    panel = make_full_panel(900, seed=14, gap_share=0.02)
    whole = build_features(panel, FULL)
    for last in (1, 7, 900, 2000):
        tail = build_features(panel, FULL, last=last)
        want = whole.iloc[-min(last, 900) :].reset_index(drop=True)
        np.testing.assert_allclose(tail.to_numpy(), want.to_numpy(), rtol=1e-9, atol=0)
        assert same_bits(build_features(panel, CORE, last=last), build_features(panel, CORE).iloc[-last:])


class Store:
    """A store, and rows read from it as live would."""

    def __init__(self, warehouse: Warehouse, last: int, snapshot_ms: int | None = None) -> None:
        self.warehouse = warehouse
        self.last = last
        self.snapshot_ms = snapshot_ms

    def row(self, ts: int | None = None, rows: int = 1) -> LiveRow:
        decision = Decision("archive", HOURLY, self.last if ts is None else ts, DELAY, self.snapshot_ms)
        return live_row(self.warehouse, decision, CORE, rows=rows)


@pytest.fixture
def live(
    make_inputs: Callable[..., dict[str, SettledSeries]], fill_store: Callable[..., Warehouse]
) -> tuple[Store, dict[str, SettledSeries]]:
    inputs = make_inputs(CORE.lookback + 150, seed=15)
    return Store(fill_store(inputs, HOURLY), int(inputs["price"].ts[-1])), inputs


def test_a_row_from_the_store_equals_the_batch(live: tuple[Store, dict[str, SettledSeries]]) -> None:
    store, inputs = live
    rows = batch(inputs, CORE)
    for back in (0, 1, 7, 30):
        found = store.row(store.last - back * HOUR_MS)
        assert not found.late
        assert found.feature_hash == CORE.hash
        np.testing.assert_allclose(
            found.rows.to_numpy()[0], rows.iloc[len(rows) - 1 - back].to_numpy(np.float64), rtol=1e-9
        )
        assert same_bits(found.rows, store.row(store.last - back * HOUR_MS).rows), "a replay is the same bit for bit"
    assert {key.partition("|")[0] for key in found.versions} == set(series_needed(CORE))


def test_only_the_lookback_is_read(live: tuple[Store, dict[str, SettledSeries]]) -> None:
    store, _ = live
    decision = Decision("archive", HOURLY, store.last, DELAY)
    start = store.last - CORE.lookback * HOUR_MS
    with store.warehouse.read() as con:
        series, _ = read_lookback(con, decision, series_needed(CORE), start)
    assert len(series["price"].ts) == CORE.lookback + 1
    assert int(series["price"].ts[0]) == start
    assert max(len(one.ts) for one in series.values()) <= CORE.lookback + 1
    assert all(int(one.ts[0]) >= start - 10 * DAY_MS for one in series.values())


def test_what_was_learnt_after_the_decision_changes_nothing(live: tuple[Store, dict[str, SettledSeries]]) -> None:
    store, _ = live
    moment = store.last - 5 * HOUR_MS
    before = store.row(moment)
    with store.warehouse.write() as con:
        con.execute(
            "INSERT INTO price BY NAME SELECT * REPLACE (observed_at + 86400000 AS observed_at, "
            "known_at + 86400000 AS known_at, close * 2 AS close, high * 2 AS high) FROM price"
        )
    assert same_bits(store.row(moment).rows, before.rows)


def test_history_loaded_later_is_seen_by_a_later_snapshot_only(
    make_inputs: Callable[..., dict[str, SettledSeries]], fill_store: Callable[..., Warehouse]
) -> None:
    inputs = make_inputs(CORE.lookback + 50, seed=16)
    last = int(inputs["price"].ts[-1])
    warehouse = fill_store(inputs, HOURLY, observed_at=last + 30 * DAY_MS)
    with pytest.raises(MissingDataError, match=r"no price bar of BTC-1h at .* that was known by"):
        Store(warehouse, last).row()
    snapshot = last + 31 * DAY_MS
    found = Store(warehouse, last, snapshot).row()
    with warehouse.read() as con:
        decision = Decision("archive", HOURLY, last, DELAY, snapshot)
        everything, _ = read_lookback(con, decision, series_needed(CORE), int(inputs["price"].ts[0]))
    want = batch(everything, CORE).iloc[-1].to_numpy(np.float64)
    np.testing.assert_allclose(found.rows.to_numpy()[0], want, rtol=1e-9)
    assert np.isfinite(want).mean() > 0.95


def test_a_series_that_came_late_is_missing_and_the_bar_before_is_not(
    live: tuple[Store, dict[str, SettledSeries]],
) -> None:
    store, _ = live
    with store.warehouse.write() as con:
        con.execute("UPDATE open_interest SET known_at = known_at + 60000, observed_at = observed_at + 60000 "
                    f"WHERE ts = {store.last}")  # fmt: skip
    assert np.isnan(store.row().rows["oi_level"][0])
    assert np.isfinite(store.row(store.last - HOUR_MS).rows["oi_level"][0])


def test_input_that_is_absent_or_was_found_bad_is_refused(live: tuple[Store, dict[str, SettledSeries]]) -> None:
    store, _ = live
    with pytest.raises(MissingDataError, match="no price bar"):
        store.row(store.last + HOUR_MS)
    with pytest.raises(MissingDataError, match="has no data of price"):
        store.row(store.last + 90 * DAY_MS)
    month = Month.of(store.last - CORE.lookback * HOUR_MS)
    with store.warehouse.write() as con:
        con.execute(
            "UPDATE quality SET passed = false WHERE asset = 'taker_volume' AND check_name = 'gaps' AND partition = ?",
            [f"BTC-1h|{month.key}"],
        )
    with pytest.raises(QualityRefusedError, match=r"taker_volume\|BTC-1h\|.*: gaps failed"):
        store.row()
