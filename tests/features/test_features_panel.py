"""The panel: a regular grid, equal joins, as-of joins by what was known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.errors import BadDataError, UsageError
from mlbot_core.features import PANEL_COLUMNS, SettledSeries, build_panel, known_at_check
from mlbot_core.features.panel import AGE_COLUMNS, COLUMN_SERIES
from mlbot_core.features.panel_columns import SOURCES, read_margin_ms
from mlbot_core.market import CATALOGUE, series_spec
from mlbot_core.timeframe import HOUR_MS, Market, Timeframe

HOURLY = Market.parse("BTC-1h")


def series_of(name: str, timeframe: str, rows: dict[int, tuple[int, float]]) -> SettledSeries:
    """Rows as {ts in hours: (known_at in hours, value of every column)}."""
    ts = sorted(rows)
    frame = pd.DataFrame(
        {"ts": [t * HOUR_MS for t in ts], "known_at": [rows[t][0] * HOUR_MS for t in ts]}, dtype=np.int64
    )
    for column in series_spec(name).column_names:
        frame[column] = [rows[t][1] for t in ts]
    return SettledSeries(name, Timeframe.parse(timeframe), frame)


def test_one_row_a_bar_and_missing_bars_are_nan() -> None:
    price = series_of("price", "1h", {0: (1, 10.0), 1: (2, 11.0), 3: (4, 13.0)})
    panel = build_panel({"price": price}, HOURLY, 0, 5 * HOUR_MS, 0)
    assert list(panel.columns) == list(PANEL_COLUMNS)
    assert panel["ts"].tolist() == [h * HOUR_MS for h in range(5)]
    assert panel["ts"].dtype == np.int64
    np.testing.assert_array_equal(panel["close"], [10.0, 11.0, np.nan, 13.0, np.nan])
    assert (
        panel.drop(columns=["ts", "late", "open", "high", "low", "close", "volume_usd", "volume_coin"])
        .isna()
        .all(axis=None)
    )
    assert (panel.drop(columns=["ts", "late"]).dtypes == np.float64).all()


def test_no_inputs_at_all_make_an_empty_grid() -> None:
    panel = build_panel({}, HOURLY, 0, 3 * HOUR_MS, 0)
    assert len(panel) == 3
    assert panel.drop(columns=["ts", "late"]).isna().all(axis=None)
    assert len(build_panel({}, HOURLY, 0, 0, 0)) == 0


def test_own_timeframe_is_never_carried_forward_and_has_age_zero() -> None:
    oi = series_of("open_interest", "1h", {0: (1, 5.0), 2: (3, 7.0)})
    panel = build_panel({"open_interest": oi}, HOURLY, 0, 4 * HOUR_MS, 0)
    np.testing.assert_array_equal(panel["oi_usd"], [5.0, np.nan, 7.0, np.nan])
    np.testing.assert_array_equal(panel["oi_age_h"], [0.0, np.nan, 0.0, np.nan])


def test_a_longer_bar_is_seen_only_once_known() -> None:
    """The 4h bar 0-4 is known at 4:00; the hourly bar 3-4 is decided at 4:00 plus the delay and sees it, no earlier."""
    ratio = series_of("long_short_ratio", "4h", {0: (4, 0.6), 4: (9, 0.7)})
    panel = build_panel({"long_short_ratio": ratio}, HOURLY, 0, 10 * HOUR_MS, 1000)
    np.testing.assert_array_equal(panel["long_share"], [np.nan] * 3 + [0.6] * 5 + [0.7] * 2)
    np.testing.assert_array_equal(panel["ratio_age_h"], [np.nan] * 3 + [0, 1, 2, 3, 4, 1, 2])


@pytest.mark.parametrize(("delay_ms", "first"), [(59_999, 4), (60_000, 3)])
def test_known_exactly_at_the_decision_counts(delay_ms: int, first: int) -> None:
    frame = pd.DataFrame({"ts": [0], "known_at": [4 * HOUR_MS + 60_000], "rate": [0.001]})
    settled = SettledSeries("funding_settled", Timeframe.parse("4h"), frame)
    panel = build_panel({"funding_settled": settled}, HOURLY, 0, 8 * HOUR_MS, delay_ms)
    assert int(np.flatnonzero(panel["funding_settled"].notna())[0]) == first


def test_a_late_bar_of_the_own_timeframe_is_marked_and_missing() -> None:
    price = series_of("price", "1h", {0: (1, 10.0), 1: (5, 11.0), 2: (3, 12.0)})
    panel = build_panel({"price": price}, HOURLY, 0, 3 * HOUR_MS, 1000)
    assert panel["late"].tolist() == [False, True, False]
    # rows after it have it in their windows, and some of them were decided before it came: it is missing for ever
    np.testing.assert_array_equal(panel["close"], [10.0, np.nan, 12.0])
    happened = build_panel({"price": price}, HOURLY, 0, 3 * HOUR_MS, 1000, keep_late=True)
    assert happened["close"].tolist() == [10.0, 11.0, 12.0]
    assert happened["late"].tolist() == [False, True, False]


@settings(max_examples=80, deadline=None)
@given(
    bars=st.dictionaries(st.integers(0, 12), st.tuples(st.integers(0, 20), st.floats(0.1, 0.9)), max_size=10),
    delay_h=st.integers(0, 3),
)
def test_as_of_join_equals_brute_force(bars: dict[int, tuple[int, float]], delay_h: int) -> None:
    """Bars become known in any order."""
    rows = {4 * b: (4 * b + 4 + late, value) for b, (late, value) in bars.items()}
    panel = build_panel(
        {"long_short_ratio": series_of("long_short_ratio", "4h", rows)}, HOURLY, 0, 60 * HOUR_MS, delay_h * HOUR_MS
    )
    for hour in range(60):
        known = [ts for ts, (known_at, _) in rows.items() if known_at <= hour + 1 + delay_h]
        value, age = panel["long_share"][hour], panel["ratio_age_h"][hour]
        if known:
            assert value == rows[max(known)][1]
            assert age == (hour + 1) - (max(known) + 4)
        else:
            assert np.isnan(value)
            assert np.isnan(age)


def test_panel_passes_the_known_at_cut(make_inputs: Callable[..., dict[str, SettledSeries]]) -> None:
    inputs = make_inputs(200, seed=1, gap_share=0.05)
    start = int(inputs["funding_rate"].ts[0])
    result = known_at_check(
        lambda known: build_panel(known, HOURLY, start, start + 200 * HOUR_MS, 5000),
        inputs,
        HOURLY,
        5000,
        [start + h * HOUR_MS for h in range(0, 200, 7)],
    )
    assert result.passed
    assert result.cuts == 29


def test_a_join_at_the_longer_bars_open_time_is_caught(
    make_inputs: Callable[..., dict[str, SettledSeries]],
) -> None:
    """Planted leak: the daily ratio is joined from its OPEN, up to a day before it was known."""
    inputs = make_inputs(200, seed=2)
    start = int(inputs["funding_rate"].ts[0])

    def leaky(known: dict[str, SettledSeries]) -> pd.DataFrame:
        panel = build_panel(known, HOURLY, start, start + 200 * HOUR_MS, 5000)
        daily = known["long_short_ratio"].frame[["ts", "long_share"]]
        joined = pd.merge_asof(panel[["ts"]], daily, on="ts")
        return panel.assign(long_share=joined["long_share"])

    result = known_at_check(leaky, inputs, HOURLY, 5000, [start + h * HOUR_MS for h in range(0, 200, 11)])
    assert not result.passed
    assert result.columns == ("long_share",)


def frame_of(ts: list[int], known_at: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"ts": ts, "known_at": known_at, "rate": [0.0] * len(ts)}, dtype=np.int64)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (frame_of([0, 0], [9 * HOUR_MS] * 2), "bar 0 is duplicated"),
        (frame_of([8 * HOUR_MS, 0], [99 * HOUR_MS] * 2), "out of order"),
        (frame_of([HOUR_MS], [99 * HOUR_MS]), "off the 8h grid"),
        (frame_of([0], [8 * HOUR_MS - 1]), "before it closed"),
        (frame_of([0], [9 * HOUR_MS]).drop(columns="rate"), "lacks rate"),
    ],
)
def test_a_settled_frame_that_cannot_be_is_refused(frame: pd.DataFrame, words: str) -> None:
    with pytest.raises(BadDataError, match=words):
        SettledSeries("funding_settled", Timeframe.parse("8h"), frame)


def test_what_does_not_belong_into_the_panel_is_refused() -> None:
    half = series_of("open_interest", "30m", {0: (1, 1.0)})
    with pytest.raises(UsageError, match="shorter than BTC-1h"):
        build_panel({"open_interest": half}, HOURLY, 0, HOUR_MS, 0)
    with pytest.raises(UsageError, match="handed over as"):
        build_panel({"funding_rate": half}, HOURLY, 0, HOUR_MS, 0)
    with pytest.raises(UsageError, match="no place in the panel"):
        build_panel({"weather": half}, HOURLY, 0, HOUR_MS, 0)
    with pytest.raises(UsageError, match="cannot stand in"):
        build_panel({"price": series_of("price", "4h", {0: (4, 1.0)})}, HOURLY, 0, HOUR_MS, 0)


def test_every_age_belongs_to_a_series() -> None:
    assert set(AGE_COLUMNS) < set(PANEL_COLUMNS)


def test_every_series_of_the_catalogue_has_its_place() -> None:
    assert set(SOURCES) == set(CATALOGUE)
    for name, source in SOURCES.items():
        assert set(source.columns.values()) <= set(series_spec(name).column_names), name
    assert len(set(PANEL_COLUMNS)) == len(PANEL_COLUMNS)
    assert set(COLUMN_SERIES) == set(PANEL_COLUMNS) - {"ts", "late"}


def test_totals_are_spread_and_nothing_else() -> None:
    """What a longer bar's children add up to is spread over its rows, except flows of funds, which are a day's news."""
    spread = {column for source in SOURCES.values() for column in source.spread}
    totals = {
        target
        for name, source in SOURCES.items()
        for target, column in source.columns.items()
        for spec in series_spec(name).columns
        if spec.name == column and spec.resample == "sum" and spec.unit != "fraction" and name != "price"
    }
    assert spread == totals - {"etf_flow_usd"}


@pytest.mark.parametrize(("lag_bars", "late"), [(1, False), (2, True)])
def test_a_series_that_settles_late_is_one_bar_behind(lag_bars: int, late: bool) -> None:
    """A book's bar is known once the next has closed; one that comes later than that is late and missing for ever."""
    book = series_of("order_book", "1h", {t: (t + 1 + lag_bars, float(t)) for t in range(6)})
    panel = build_panel({"order_book": book}, HOURLY, 0, 6 * HOUR_MS, 1000)
    if late:
        assert panel["book_bids_usd"].isna().all()
        assert panel["late"].tolist() == [False] + [True] * 5
    else:
        np.testing.assert_array_equal(panel["book_bids_usd"], [np.nan, 0, 1, 2, 3, 4])
        np.testing.assert_array_equal(panel["book_age_h"], [np.nan, 1, 1, 1, 1, 1])
        assert not panel["late"].any()
    happened = build_panel({"order_book": book}, HOURLY, 0, 6 * HOUR_MS, 1000, keep_late=True)
    np.testing.assert_array_equal(happened["book_bids_usd"], [np.nan, 0, 1, 2, 3, 4])


def test_the_read_margin_is_what_the_first_row_needs() -> None:
    """Reading from further back changes nothing; from less far back it may."""
    hour, day = Timeframe.parse("1h"), Timeframe.parse("1d")
    assert read_margin_ms("price", hour, hour, 5000) == 0
    assert read_margin_ms("order_book", hour, hour, 5000) == HOUR_MS
    assert read_margin_ms("etf_flows", day, hour, 5000) == 8 * 24 * HOUR_MS
    start = 20 * 24 * HOUR_MS
    for name in ("fear_greed", "etf_flows", "options_oi"):
        margin = read_margin_ms(name, day, hour, 5000)
        rows = {24 * d: (24 * d + 36, float(d)) for d in range(20) if d != 17}
        full = series_of(name, "1d", rows)
        cut = series_of(name, "1d", {t: row for t, row in rows.items() if t * HOUR_MS >= start - margin})
        panels = [build_panel({name: one}, HOURLY, start, start + 9 * 24 * HOUR_MS, 5000) for one in (full, cut)]
        pd.testing.assert_frame_equal(*panels)
        assert panels[0][next(iter(SOURCES[name].columns))].notna().any()


@settings(max_examples=40, deadline=None)
@given(
    hours=st.sets(st.integers(-5, 30), max_size=20), first=st.integers(0, 10), rows=st.integers(0, 20),
    behind=st.booleans(),
)  # fmt: skip
def test_equal_join_equals_brute_force(hours: set[int], first: int, rows: int, behind: bool) -> None:
    """Gapless or not, wherever the grid lies against the bars."""
    name = "order_book" if behind else "whale_index"
    column = "book_bids_usd" if behind else "whale_index"
    series = series_of(name, "1h", {t: (t + 1 + behind, float(t) + 0.5) for t in hours})
    panel = build_panel({name: series}, HOURLY, first * HOUR_MS, (first + rows) * HOUR_MS, 1000)
    expected = [t - behind + 0.5 if t - behind in hours else np.nan for t in range(first, first + rows)]
    np.testing.assert_array_equal(panel[column], expected)
