"""Longer bars: against a slow reference, and never before all children exist."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.errors import UsageError
from mlbot_core.market import CATALOGUE, SeriesBatch, empty_table, make_table
from mlbot_core.market.batch import column
from mlbot_core.market.resample import resample
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Timeframe

H1, H2, H4, D1 = (Timeframe.parse(t) for t in ("1h", "2h", "4h", "1d"))
ORIGIN = 20_000 * DAY_MS


def size(col):
    """A factor, exact in binary, that keeps values below the bound of a column that has one."""
    return 1.0 if col.maximum is None else 2.0**-40


def series(name, versions):
    """A batch table from {(ts, observed_at): value}; every column gets the value plus its position."""
    keys = sorted(versions)
    spec = CATALOGUE[name]
    values = {c.name: [(versions[key] + i) * size(c) for key in keys] for i, c in enumerate(spec.columns)}
    return make_table(name, [ts for ts, _ in keys], [observed for _, observed in keys], values)


def rows(table):
    return table.to_pylist()


def test_price_by_hand():
    table = make_table(
        "price",
        [ORIGIN, ORIGIN + HOUR_MS, ORIGIN + 2 * HOUR_MS],
        [ORIGIN + 9 * HOUR_MS, ORIGIN + 8 * HOUR_MS, ORIGIN + 9 * HOUR_MS],
        {
            "open": [10, 12, 1],
            "high": [15, 13, 1],
            "low": [9, 8, 1],
            "close": [12, 11, 1],
            "volume_usd": [100, 50, 1],
        },
    )
    assert rows(resample(table, "price", H1, H2)) == [
        {
            "ts": ORIGIN,
            "observed_at": ORIGIN + 9 * HOUR_MS,
            "open": 10.0,
            "high": 15.0,
            "low": 8.0,
            "close": 11.0,
            "volume_usd": 150.0,
            "volume_coin": None,
        }
    ]


def test_ratios_take_the_last_and_flows_the_sum():
    stamps = [ORIGIN, ORIGIN + HOUR_MS]
    seen = ORIGIN + DAY_MS
    ratio = make_table("long_short_ratio", stamps, seen, {"long_share": [0.4, 0.6], "short_share": [0.6, 0.4]})
    assert rows(resample(ratio, "long_short_ratio", H1, H2))[0]["long_share"] == 0.6
    flow = make_table("liquidations", stamps, seen, {"long_usd": [4.0, 6.0], "short_usd": [1.0, 0.0]})
    assert rows(resample(flow, "liquidations", H1, H2))[0]["long_usd"] == 10.0


def test_a_null_child_makes_a_null():
    stamps = [ORIGIN, ORIGIN + HOUR_MS]
    table = make_table("liquidations", stamps, ORIGIN + DAY_MS, {"long_usd": [np.nan, 6.0], "short_usd": [1.0, 2.0]})
    (row,) = rows(resample(table, "liquidations", H1, H2))
    assert row["long_usd"] is None
    assert row["short_usd"] == 3.0


def test_versions_of_a_child_are_versions_of_the_parent():
    table = series(
        "liquidations",
        {
            (ORIGIN, ORIGIN + 5 * HOUR_MS): 1.0,
            (ORIGIN, ORIGIN + 7 * HOUR_MS): 10.0,
            (ORIGIN + HOUR_MS, ORIGIN + 6 * HOUR_MS): 2.0,
            (ORIGIN + HOUR_MS, ORIGIN + 8 * HOUR_MS): 20.0,
        },
    )
    got = [(r["observed_at"] - ORIGIN, r["long_usd"]) for r in rows(resample(table, "liquidations", H1, H2))]
    assert got == [(6 * HOUR_MS, 3.0), (7 * HOUR_MS, 12.0), (8 * HOUR_MS, 30.0)]


def test_same_length_and_impossible_lengths():
    table = series("price", {(ORIGIN, ORIGIN + DAY_MS): 5.0})
    assert resample(table, "price", H1, H1) is table
    with pytest.raises(UsageError, match="bars of 2h do not make bars of 1h"):
        resample(table, "price", H2, H1)
    with pytest.raises(UsageError, match="do not make"):
        resample(table, "price", Timeframe(240), Timeframe(360))


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_nothing_makes_nothing(name):
    assert resample(empty_table(name), name, H1, H4).equals(empty_table(name))


REDUCE = {
    "first": lambda xs: xs[0],
    "last": lambda xs: xs[-1],
    "max": max,
    "min": min,
    "sum": lambda xs: float(np.sum(np.array(xs))),
}

VERSIONS = st.dictionaries(
    st.tuples(st.integers(0, 30), st.integers(0, 5)), st.floats(0.5, 1e9, allow_subnormal=False), max_size=60
)


@settings(max_examples=150, deadline=None)
@given(
    versions=VERSIONS,
    name=st.sampled_from(["price", "long_short_ratio", "taker_volume", "funding_settled"]),
    target=st.sampled_from([H2, H4, D1]),
)
def test_against_a_slow_reference(versions, name, target):
    versions = {
        (ORIGIN + bar * HOUR_MS, ORIGIN + 60 * HOUR_MS + seen * HOUR_MS): value
        for (bar, seen), value in versions.items()
    }
    table = series(name, versions)
    got = resample(table, name, H1, target)
    expected = []
    parents = sorted({target.floor(ts) for ts, _ in versions})
    for parent in parents:
        children = range(parent, parent + target.ms, HOUR_MS)
        for event in sorted({seen for ts, seen in versions if target.floor(ts) == parent}):
            known = [[(seen, v) for (ts, seen), v in versions.items() if ts == c and seen <= event] for c in children]
            if not all(known):
                continue
            newest = [max(versions_of)[1] for versions_of in known]
            row = {"ts": parent, "observed_at": event}
            for i, col in enumerate(CATALOGUE[name].columns):
                row[col.name] = REDUCE[col.resample]([(value + i) * size(col) for value in newest])
            expected.append(row)
    actual = rows(got)
    assert [(r["ts"], r["observed_at"]) for r in actual] == [(r["ts"], r["observed_at"]) for r in expected]
    for row, wanted in zip(actual, expected, strict=True):
        assert row == pytest.approx(wanted, rel=1e-12, abs=0)
    # the result is a batch as any source's: closed, aligned, unique
    SeriesBatch(name, "BTC", target, "test", got)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 47)))
def test_one_version_a_bar_and_steps_compose(present):
    table = series("price", {(ORIGIN + bar * HOUR_MS, ORIGIN + 100 * HOUR_MS + bar): 1.0 + bar for bar in present})
    direct = resample(table, "price", H1, H4)
    assert direct.equals(resample(resample(table, "price", H1, H2), "price", H2, H4))
    whole = [p for p in range(0, 48, 4) if set(range(p, p + 4)) <= present]
    assert column(direct, "ts").tolist() == [ORIGIN + p * HOUR_MS for p in whole]
    assert column(direct, "observed_at").tolist() == [ORIGIN + 100 * HOUR_MS + p + 3 for p in whole]
