"""Forecasts of the newest bar: from its lookback alone, as the batch has them, written once."""

from __future__ import annotations

import dataclasses
import math
import threading

import numpy as np
import pytest

from mlbot_core.clock import parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.errors import MissingDataError, WarehouseError
from mlbot_core.features.sets import configured_set
from mlbot_core.live.observation import NO_AGE, forecast_to_decide, said_of
from mlbot_core.live.pull import wanted_series
from mlbot_core.live.rows import MIN_KNOWN, Moment, compute_row, read_bar
from mlbot_core.live.signal_store import TABLE, SignalKey, read_signal, read_signals
from mlbot_core.models import training_data
from mlbot_core.models.base import load_model
from mlbot_core.timeframe import HOUR_MS, Month
from mlbot_core.warehouse import Warehouse

BAR = parse_utc_ms("2024-09-20T00:00:00Z")
DECISION = BAR + 2 * HOUR_MS + 5_000


def live_until(home, tools, bars):
    """Step through bars of two hours, both timeframes at their decision times; return the forecasts of the 2h bars."""
    found = []
    for n in range(1, bars + 1):
        home.clock.set_ms(BAR + n * 2 * HOUR_MS + 5_000)
        coincident = n % 2 == 0
        if coincident:
            home.pull(tools.FOUR)
            home.forecast(tools.FOUR, wait_s=0.0)
        home.pull(tools.TWO)
        found.append(home.forecast(tools.TWO, wait_s=0.0))
    return found


def test_live_forecasts_are_those_of_the_batch(home, tools):
    found = live_until(home, tools, 6)
    assert [one.ts for one in found] == [BAR + n * 2 * HOUR_MS for n in range(6)]
    # days later the batch makes the same bars
    home.at("2024-09-23T00:00:05Z")
    home.pull(tools.TWO, bars=48)
    tools.derive(home, tools.TWO, (Month(2024, 9),))
    features = configured_set(home.settings.models.features)
    with home.store.read() as con:
        table = con.execute("SELECT * FROM features_core WHERE timeframe = '2h' ORDER BY ts").df().set_index("ts")
        width = con.execute("SELECT ts, tb_width FROM targets WHERE timeframe = '2h'").df().set_index("ts")["tb_width"]
    for one in found:
        signal = one.of("lightgbm")
        model = load_model(home.settings.models_dir / signal.key.model_version)
        batch = table[list(model.feature_names)]
        want, got = batch.loc[one.ts].to_numpy(), signal.vector[0]
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=0)
        assert signal.width == width.loc[one.ts]
        said = model.predict(batch, np.array([batch.index.get_loc(one.ts)])).iloc[0]
        for name, value in signal.forecast.items():
            assert value == pytest.approx(said[name], rel=1e-9), name
        assert signal.edge == signal.forecast["score"] * signal.width
        assert signal.usable
        assert (signal.multiplier, signal.reason) == (1.0, "")
    assert len(features.names) == found[0].of("lightgbm").vector.shape[1]


@pytest.mark.slow
def test_the_meta_model_is_asked_with_the_forecasts_as_of_their_close(home, tools):
    first, second, third = live_until(home, tools, 3)
    meta = second.of("meta")
    four = read_signals(home.store, tools.SOURCE, tools.FOUR, BAR, BAR + 1)[0]
    two = second.of("lightgbm")
    names = load_model(home.settings.models_dir / meta.key.model_version).feature_names
    columns = dict(zip(names, meta.vector[0].tolist(), strict=True))
    assert columns["2h_lightgbm_score"] == two.forecast["score"]
    assert columns["4h_lightgbm_score"] == math.sqrt(0.5) * four.forecast["score"]
    assert (columns["2h_lightgbm_age"], columns["4h_lightgbm_age"]) == (0.0, 0.0)
    assert meta.details["disagreement"] == pytest.approx(
        abs(columns["2h_lightgbm_score"] - columns["4h_lightgbm_score"]) / 2
    )
    # before and after it the 4h forecast is absent, and half a bar old
    assert "without 4h_lightgbm" in first.of("meta").reason
    (older,) = [one for one in third.of("meta").inputs if one.name == "4h_lightgbm"]
    assert (older.ts, older.age_ms, older.state) == (BAR, 2 * HOUR_MS, "fresh")
    assert older.value == columns["4h_lightgbm_score"]


@pytest.mark.slow
def test_a_coincident_forecast_is_waited_for_a_bounded_time_then_the_last_one_counts_with_its_age(home, tools):
    live_until(home, tools, 3)
    home.at("2024-09-20T08:00:05Z")
    home.pull(tools.TWO)
    before = home.clock.now_ms()
    told = home.forecast(tools.TWO, wait_s=20.0)
    waited = home.clock.now_ms() - before
    assert told.awaited == ("4h_lightgbm",)
    assert 19_000 <= waited <= 20_000
    meta = told.of("meta")
    (four,) = [one for one in meta.inputs if one.name == "4h_lightgbm"]
    assert (four.ts, four.state, four.age_ms) == (BAR, "late", 4 * HOUR_MS)
    assert "older base forecasts stand in" in meta.reason
    assert meta.usable


@pytest.mark.slow
def test_it_can_make_the_others_itself(home, tools):
    live_until(home, tools, 1)
    home.at("2024-09-20T04:00:05Z")
    home.pull(tools.TWO)
    home.pull(tools.FOUR)
    told = home.forecast(tools.TWO, wait_s=0.0, make_others=True)
    assert told.awaited == ()
    assert {one.name: one.state for one in told.of("meta").inputs} == {"2h_lightgbm": "fresh", "4h_lightgbm": "fresh"}
    assert len(read_signals(home.store, tools.SOURCE, tools.FOUR, BAR, BAR + 1)) == 1


def test_whoever_comes_early_waits_for_the_decision_time(home):
    home.at("2024-09-20T02:00:00Z")
    home.pull()
    told = home.forecast(wait_s=0.0)
    assert home.clock.now_ms() == told.decision_ms == DECISION
    assert {one.known_by_ms for one in told.signals} == {DECISION}


def test_asked_again_it_gives_what_stands_also_to_two_at_once(home, tools):
    home.at("2024-09-20T02:00:05Z")
    home.pull()
    gate, ends = threading.Barrier(2), []

    def ask():
        gate.wait()
        ends.append(home.forecast(wait_s=0.0))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    digests = [[one.digest for one in end.signals] for end in ends]
    assert digests[0] == digests[1]
    home.at("2024-09-20T02:30:00Z")
    again = home.forecast(wait_s=0.0)
    assert [one.digest for one in again.signals] == digests[0]
    assert again.made == 0
    with home.store.read() as con:
        (count,) = con.execute(f"SELECT count(*), count(DISTINCT digest) FROM {TABLE}").fetchall()
    assert count == (2, 2)


def test_a_row_that_was_changed_in_the_store_is_refused(home):
    home.at("2024-09-20T02:00:05Z")
    home.pull()
    told = home.forecast(wait_s=0.0)
    with home.store.write() as con:
        con.execute(f"UPDATE {TABLE} SET edge = edge * 2 WHERE model_type = 'meta'")
    with pytest.raises(WarehouseError, match="not what was written"):
        read_signal(home.store, told.of("meta").key)


@pytest.mark.slow
def test_a_series_that_is_late_leaves_the_bar_without_a_forecast_as_in_a_backtest(home, tools):
    home.at("2024-09-20T02:00:05Z")

    def late(source):
        source.hidden[("taker_volume", BAR)] = DECISION + 60_000

    home.pull(change=late)
    told = home.forecast(wait_s=0.0)
    for one in told.signals:
        assert not one.usable
        assert math.isnan(one.edge)
        assert "taker_volume late" in one.reason
        assert "no forecast" in one.reason
    said = forecast_to_decide(home.store, home.settings, told)
    assert math.isnan(said.forecast.edge)
    assert said.forecast.age_ms == 0
    # the batch drops the row too, once the value has come
    home.at("2024-09-20T02:05:00Z")
    home.pull()
    home.at("2024-09-23T00:00:05Z")
    home.pull(tools.TWO, bars=48)
    tools.derive(home, tools.TWO, (Month(2024, 9),))
    with home.store.read() as con:
        rows = con.execute("SELECT ts, late FROM features_core WHERE timeframe = '2h' AND ts >= ?", [BAR]).fetchall()
    assert dict(rows)[BAR] is True


@pytest.mark.slow
def test_after_downtime_old_bars_give_late_signals_that_decide_nothing(home, tools):
    home.at("2024-09-20T11:00:00Z")
    home.pull(tools.TWO)
    for n in range(3):
        told = home.forecast(tools.TWO, BAR + n * 2 * HOUR_MS, wait_s=0.0)
        assert told.late
        for one in told.signals:
            assert one.late
            assert not one.usable
            assert math.isfinite(one.edge)
            assert "for the record only" in one.reason
        said = forecast_to_decide(home.store, home.settings, told)
        assert math.isnan(said.forecast.edge)


def test_a_bar_that_is_not_stored_is_missing_and_the_last_forecast_stands_in_with_its_age(home, tools):
    home.at("2024-09-20T02:00:05Z")
    home.pull()
    told = home.forecast(wait_s=0.0)
    home.at("2024-09-20T04:00:05Z")
    with pytest.raises(MissingDataError, match="no price bar of BTC-2h"):
        home.forecast(wait_s=0.0)
    version = told.speaking["lightgbm"]
    said = said_of(home.store, tools.SOURCE, tools.TWO, BAR + 2 * HOUR_MS, "lightgbm", version)
    assert said.forecast == (told.of("lightgbm").edge, 1.0, 2 * HOUR_MS)
    assert "stands in" in said.reason
    nobody = said_of(home.store, tools.SOURCE, tools.TWO, BAR + 2 * HOUR_MS, "lightgbm", None)
    assert nobody.forecast.age_ms == NO_AGE
    assert nobody.as_json()["key"] is None


@pytest.mark.slow
def test_a_restated_bar_changes_later_bars_only(home, tools):
    home.at("2024-09-20T02:00:05Z")
    home.pull()
    before = home.forecast(wait_s=0.0)
    home.at("2024-09-20T04:00:05Z")
    home.pull(change=lambda source: source.factor.__setitem__(("open_interest", BAR), 1.05))
    home.forecast(wait_s=0.0)
    again = home.forecast(ts=BAR, wait_s=0.0)
    assert [one.digest for one in again.signals] == [one.digest for one in before.signals]


def test_without_a_model_it_names_the_command_that_trains_one(home, tmp_path):
    empty = load_settings({"MLBOT_HOME": str(tmp_path / "empty"), "MLBOT_CONFIG_DIR": str(home.settings.config_dir)})
    from mlbot_core.live.signals import forecast_newest
    from mlbot_core.timeframe import Market

    store = Warehouse(empty.warehouse_path, home.clock)
    with pytest.raises(MissingDataError, match="mlbot train --source emulator --symbol BTC --interval 2h"):
        forecast_newest(store, empty, "emulator", Market.parse("BTC-2h"), run_id="test")


def test_a_model_of_a_made_up_market_says_nothing_elsewhere(home):
    home.at("2024-09-20T02:00:05Z")
    home.pull()
    told = home.forecast(wait_s=0.0, venue="paper")
    assert told.signals == ()
    assert told.speaking == {}
    assert all("only trade on the emulator" in one.reason for one in told.refused)
    assert len(told.refused) >= 2


def test_a_signal_survives_the_store_bit_for_bit(home, tools):
    home.at("2024-09-20T02:00:05Z")
    home.pull()
    for one in home.forecast(wait_s=0.0).signals:
        stored = read_signal(home.store, one.key)
        assert stored.vector.tobytes() == one.vector.tobytes()
        for field in dataclasses.fields(one):
            if field.name not in ("vector", "details"):
                assert repr(getattr(stored, field.name)) == repr(getattr(one, field.name)), field.name
        assert SignalKey.from_json(one.key.as_json()) == one.key


def test_the_share_of_known_features_is_the_rule_of_the_training_data():
    assert MIN_KNOWN == training_data._MIN_FINITE


@pytest.mark.slow
def test_context_rows_are_the_rows_of_their_own_bars(home, tools):
    features = configured_set(home.settings.models.features)
    names = wanted_series(home.store, tools.SOURCE, home.settings, tools.TWO)
    now = home.clock.now_ms()

    def rows_of(ts, count):
        moment = Moment(tools.SOURCE, tools.TWO, ts, 5_000, now)
        with home.store.read() as con:
            return compute_row(read_bar(con, moment, features, names, count), moment, features, count)

    newest = BAR - 2 * HOUR_MS
    several = rows_of(newest, 4)
    assert several.features.index.tolist() == [newest - n * 2 * HOUR_MS for n in (3, 2, 1, 0)]
    assert not several.late_rows.any()
    for ts in several.features.index[1:]:
        alone = rows_of(int(ts), 1)
        np.testing.assert_array_equal(alone.features.to_numpy()[0], several.features.loc[ts].to_numpy())
