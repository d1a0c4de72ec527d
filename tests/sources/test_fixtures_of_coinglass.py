"""Real rows of the real API, with the types as served, through the very parser the client uses."""

import json

import numpy as np
import pytest

from mlbot_core.clock import parse_utc_ms
from mlbot_core.market import CATALOGUE, Column, SeriesSpec
from mlbot_core.sources.envelope import Outcome, read_envelope
from mlbot_core.sources.rows import parse_answer
from mlbot_core.timeframe import Timeframe

pytestmark = pytest.mark.archive

H4, H8 = Timeframe(240), Timeframe(480)
# When the answers were recorded: the 16:00 bar was open.
RECORDED = parse_utc_ms("2025-11-14T16:15:00Z")
FIRST = parse_utc_ms("2025-05-18T20:00:00Z")
LAST_CLOSED = parse_utc_ms("2025-11-14T12:00:00Z")

IN_CATALOGUE = {
    "price": "futures_price_history",
    "open_interest": "open_interest_aggregated_history",
    "funding_rate": "funding_rate_oi_weight_history",
    "long_short_ratio": "global_long_short_account_ratio_history",
    "liquidations": "liquidation_aggregated_history",
    "taker_volume": "aggregated_taker_buy_sell_volume_history",
    "open_interest_stablecoin": "open_interest_aggregated_stablecoin_history",
    "open_interest_coin_margin": "open_interest_aggregated_coin_margin_history",
    "funding_rate_pair": "funding_rate_history_binance",
    "top_account_ratio": "top_long_short_account_ratio_history",
    "top_position_ratio": "top_long_short_position_ratio_history",
}
# The recorded answers are 4h bars, but for one.
TIMEFRAMES = {"funding_rate_pair": H8}
OTHERS = {
    "basis_history": (H4, ("open_basis", "close_basis", "open_change", "close_change")),
}
SNAPSHOTS = {
    "liquidation_exchange_list": 6,
    "open_interest_exchange_list": 6,
    "pairs_markets": 6,
    "taker_buy_sell_volume_exchange_list": 6,
}


def body(archive_dir, name):
    return (archive_dir / "fixtures" / "coinglass" / f"{name}.json").read_bytes()


def rows(archive_dir, name):
    envelope = read_envelope(200, body(archive_dir, name), list)
    assert envelope.outcome is Outcome.OK
    return envelope.data


def test_every_fixture_is_covered(archive_dir):
    names = {path.stem for path in (archive_dir / "fixtures" / "coinglass").glob("*.json")}
    assert names == {*IN_CATALOGUE.values(), *OTHERS, *SNAPSHOTS, "error_401_upgrade_plan"}


@pytest.mark.parametrize(("series", "name"), IN_CATALOGUE.items())
def test_catalogue_series(archive_dir, series, name):
    data = rows(archive_dir, name)
    spec = CATALOGUE[series]
    timeframe = TIMEFRAMES.get(series, H4)
    page = parse_answer(data, spec, timeframe, RECORDED, RECORDED)
    assert len(data) == 6
    assert len(page.ts) == 5
    assert int(page.ts[-1]) == timeframe.last_closed(RECORDED)
    fields = [column for column in spec.columns if column.field]
    for row, values in zip(data, page.values, strict=False):
        assert values.tolist() == [float(row[column.field]) * column.scale for column in fields]
    # the same answer once the bar has closed
    later = RECORDED + timeframe.ms
    assert len(parse_answer(data, spec, timeframe, later, later).ts) == 6


def test_values_by_hand(archive_dir):
    def first(series):
        timeframe = TIMEFRAMES.get(series, H4)
        page = parse_answer(rows(archive_dir, IN_CATALOGUE[series]), CATALOGUE[series], timeframe, RECORDED, RECORDED)
        return page.values[0].tolist()

    assert first("funding_rate_pair") == pytest.approx([0.00004372, 0.00008807, 0.00004038, 0.00004038], rel=1e-12)
    assert first("price") == [103461.3, 103675.0, 102536.0, 103278.7, 2138344671.3806]
    assert first("open_interest") == [68596490975.0, 70045961758.0, 68045912734.0, 70030764119.0]
    assert first("funding_rate") == pytest.approx([0.0000924, 0.0000924, 0.00007021, 0.00007624], rel=1e-12)
    assert first("long_short_ratio") == pytest.approx([0.385, 0.615], rel=1e-12)
    assert first("liquidations") == [2469489.04784, 4688197.81167]
    assert first("taker_volume") == [3708888023.156, 2874817617.4746]
    # coins: in USD it would be about 9e9
    assert first("open_interest_stablecoin") == [88421.75, 88437.1, 86269.69, 86754.43]
    assert first("open_interest_coin_margin") == [2143861600.0, 2143861600.0, 2054987300.0, 2054987300.0]
    assert first("top_account_ratio") == pytest.approx([0.4254, 0.5746], rel=1e-12)
    assert first("top_position_ratio") == pytest.approx([0.5971, 0.4029], rel=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_histories_outside_the_catalogue(archive_dir, name):
    timeframe, fields = OTHERS[name]
    columns = tuple(Column(field, "USD", "last", field, positive="no") for field in fields)
    spec = SeriesSpec(name, name, name, columns, f"/api/{name}", {})
    data = rows(archive_dir, name)
    page = parse_answer(data, spec, timeframe, RECORDED, RECORDED)
    assert page.values.shape == (5, len(fields))
    assert np.isfinite(page.values).all()
    assert page.values[0].tolist() == [float(data[0][field]) for field in fields]


@pytest.mark.parametrize(("name", "count"), SNAPSHOTS.items())
def test_snapshots_are_lists(archive_dir, name, count):
    assert len(rows(archive_dir, name)) == count


def test_refusal_inside_http_200(archive_dir):
    text = body(archive_dir, "error_401_upgrade_plan")
    assert json.loads(text)["code"] == "401"
    assert read_envelope(200, text, list).outcome is Outcome.NOT_IN_PLAN
