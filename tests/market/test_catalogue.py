"""The catalogue's own promises, and the calendar that one of its series needs."""

import json
from datetime import date

import numpy as np
import pytest
from typer.testing import CliRunner

from mlbot_core.clock import parse_utc_ms
from mlbot_core.errors import BadDataError, UsageError
from mlbot_core.market import CATALOGUE, CORE_SERIES, make_table, series_spec
from mlbot_core.market.trading_days import is_us_trading_day, us_holidays
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Timeframe

H1, H4, D1 = (Timeframe.parse(text) for text in ("1h", "4h", "1d"))
UNITS = {"USD", "coin", "fraction", "index"}


@pytest.mark.parametrize("name", CATALOGUE)
def test_an_entry_is_whole(name):
    spec = CATALOGUE[name]
    assert spec.name == name == name.lower()
    assert spec.title
    assert spec.description.endswith(".")
    assert {col.unit for col in spec.columns} <= UNITS
    assert len(set(spec.column_names)) == len(spec.columns)
    assert set(spec.parts) <= set(spec.column_names)
    assert (spec.endpoint is None) == all(col.field is None for col in spec.columns)
    if spec.endpoint is not None:
        assert spec.endpoint.startswith("/api/")
        assert spec.time_unit in ("ms", "s")
        assert spec.unsettled_rows >= 1
    if {"open", "high", "low", "close"} <= set(spec.column_names):
        rules = {col.name: col.resample for col in spec.columns}
        assert (rules["open"], rules["high"], rules["low"], rules["close"]) == ("first", "max", "min", "last")


def test_endpoints_are_distinct_and_core_is_in_it():
    endpoints = [spec.endpoint for spec in CATALOGUE.values() if spec.endpoint]
    assert len(endpoints) == len(set(endpoints)) == 26
    assert set(CORE_SERIES) <= set(CATALOGUE)
    with pytest.raises(UsageError, match="'tulips' is not in the catalogue"):
        series_spec("tulips")


@pytest.mark.parametrize(
    ("name", "timeframe", "lag"),
    [
        ("price", H1, 0),
        ("order_book", H1, HOUR_MS),
        ("order_book_aggregated", H4, 4 * HOUR_MS),
        ("bitfinex_margin", H4, 4 * HOUR_MS),
        ("etf_flows", D1, 12 * HOUR_MS),
        ("coinbase_premium", H4, 0),
    ],
)
def test_when_a_bar_has_settled(name, timeframe, lag):
    assert CATALOGUE[name].lag_ms(timeframe) == lag


def test_values_beyond_their_column_are_refused():
    ts = [parse_utc_ms("2024-01-01")]
    for name, column, value in (
        ("open_interest_stablecoin", "close", 6e9),
        ("fear_greed", "value", 101.0),
        ("long_short_ratio", "long_share", 76.06),
        ("price", "close", 1e9),
        ("coinbase_premium", "premium_rate", -5.1),
    ):
        with pytest.raises(BadDataError, match=f"{name}.{column} is .* which cannot be"):
            make_table(name, ts, ts, {column: [value]})


def test_expected_bars_of_a_series_with_holidays():
    spec = CATALOGUE["etf_flows"]
    start, end = parse_utc_ms("2024-06-28"), parse_utc_ms("2024-07-09")
    days = [str(np.datetime64(int(ts), "ms"))[5:10] for ts in spec.expected_opens(D1, start, end)]
    assert days == ["06-28", "07-01", "07-02", "07-03", "07-05", "07-08"]
    assert CATALOGUE["price"].expected_opens(D1, start, end).tolist() == list(range(start, end, DAY_MS))
    assert len(spec.expected_opens(D1, parse_utc_ms("2020-01-01"), parse_utc_ms("2024-01-11"))) == 0


@pytest.mark.parametrize(
    ("year", "days"),
    [
        # as the exchanges announced them
        (
            2024,
            "01-01 01-15 02-19 03-29 05-27 06-19 07-04 09-02 11-28 12-25",
        ),
        (2025, "01-01 01-09 01-20 02-17 04-18 05-26 06-19 07-04 09-01 11-27 12-25"),
        # Juneteenth and Christmas on Sundays are kept on Mondays; New Year's Day on a Saturday is not kept
        (2022, "01-17 02-21 04-15 05-30 06-20 07-04 09-05 11-24 12-26"),
        # the third of July for the fourth, a Saturday
        (2020, "01-01 01-20 02-17 04-10 05-25 07-03 09-07 11-26 12-25"),
    ],
)
def test_us_holidays(year, days):
    assert us_holidays(year) == tuple(date.fromisoformat(f"{year}-{day}") for day in days.split())


def test_trading_days_are_those_of_the_utc_date():
    stamps = np.array([parse_utc_ms(text) for text in ("2024-07-03T23:59:59Z", "2024-07-04T00:00:00Z", "2024-07-06")])
    assert is_us_trading_day(stamps).tolist() == [True, False, False]
    assert is_us_trading_day(np.empty(0, dtype=np.int64)).tolist() == []


def test_the_command_lists_every_entry():
    from mlbot_core.cli.series import app

    listed = json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)
    assert [row["name"] for row in listed] == list(CATALOGUE)
    book = next(row for row in listed if row["name"] == "order_book")
    assert book["unsettled_rows"] == 2
    assert book["plan"] == "hobbyist"
    assert book["sources"] == ["coinglass", "emulator"]
    assert {(col["name"], col["unit"], col["field"]) for col in book["columns"]} >= {
        ("bids_coin", "coin", "bids_quantity"),
        ("asks_usd", "USD", "asks_usd"),
    }
    funding = next(row for row in listed if row["name"] == "funding_rate")
    assert {col["scale"] for col in funding["columns"]} == {0.01}
    price = next(row for row in listed if row["name"] == "price")
    assert {"coinglass", "bybit", "archive", "archive-vintages"} <= set(price["sources"])
    text = CliRunner().invoke(app, ["list"]).stdout
    assert "30 series" in text
    assert "(fraction)" in text
