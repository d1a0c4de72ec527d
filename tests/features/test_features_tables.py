"""Alpha158's tables: their blocks, networks and joined windows change no bit of what a window says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.errors import UsageError
from mlbot_core.features import build_features, rolling, sorting
from mlbot_core.features import registry as r
from mlbot_core.features.alpha158_orders import orders
from mlbot_core.features.alpha158_states import BLOCK, LENGTHS

FEATURES = tuple(f for f in r.all_features() if f.family == "alpha158")
WHOLE = r.make_feature_set("alpha158", FEATURES, 240)


def bits(frame: pd.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    values = np.array(frame[list(names)], dtype=np.float64, order="C")
    values[np.isnan(values)] = np.nan
    return values.view(np.int64)


@pytest.fixture(scope="module")
def panel(make_panel: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """Longer than a block, with stretches that have gaps and a long one that has none."""
    panel = make_panel(3 * BLOCK, seed=21, gap_share=0.01)
    whole = make_panel(3 * BLOCK, seed=21)
    panel.iloc[BLOCK - 100 : 2 * BLOCK + 100] = whole.iloc[BLOCK - 100 : 2 * BLOCK + 100]
    return panel


@settings(max_examples=60, deadline=None)
@given(m=st.integers(0, 12), n=st.integers(0, 12))
def test_a_merger_sorts_every_pair_of_sorted_lists_of_zeros_and_ones(m: int, n: int) -> None:
    """The 0-1 principle: a network that sorts these sorts everything."""
    network, order = sorting.merger(list(range(m)), list(range(n)))
    cases = [([0.0] * (m - i) + [1.0] * i + [0.0] * (n - j) + [1.0] * j) for i in range(m + 1) for j in range(n + 1)]
    rows = np.array(cases).reshape(len(cases), m + n).T.copy()
    sorting.apply(network, rows)
    assert (np.diff(rows[order], axis=0) >= 0).all()


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.integers(0, 9), min_size=1, max_size=13))
def test_a_sorter_sorts(values: list[int]) -> None:
    network, order = sorting.sorter(len(values))
    rows = np.array(values, dtype=np.float64)[:, None]
    sorting.apply(network, rows)
    assert rows[order, 0].tolist() == sorted(values)


def test_a_merger_of_wanted_places_takes_fewer_steps_and_finds_the_same() -> None:
    whole, order = sorting.merger(list(range(30)), list(range(30)))
    some, _ = sorting.merger(list(range(30)), list(range(30)), (11, 12, 47, 48))
    assert len(some) < len(whole)
    rows = np.sort(np.random.default_rng(1).normal(size=(2, 30, 50)), axis=1).reshape(60, 50)
    expected = np.sort(rows, axis=0)
    sorting.apply(some, rows)
    for place in (11, 12, 47, 48):
        np.testing.assert_array_equal(rows[order[place]], expected[place])


def test_networks_say_what_a_sorted_list_says_bit_for_bit() -> None:
    rng = np.random.default_rng(5)
    close = 100 + np.round(rng.normal(size=3 * BLOCK + 77).cumsum(), 1)  # ties
    close[2 * BLOCK + 300] = np.nan  # the block before is complete, this one is not
    into = np.empty((15, close.size))
    orders(into, np.arange(15), close)
    for k, n in enumerate(LENGTHS):
        count, rank, high, low = rolling.order_statistics(close, n)
        use = np.isfinite(close) & (10 * count >= 8 * n)
        for row, values in ((k, high / close), (5 + k, low / close), (10 + k, rank)):
            np.testing.assert_array_equal(into[row], np.where(use, values, np.nan), err_msg=f"{row} {n}")


def test_no_bit_depends_on_where_the_panel_is_cut_and_hence_on_the_blocks(panel: pd.DataFrame) -> None:
    everything = bits(build_features(panel, WHOLE), WHOLE.names)
    for first, last in ((0, 1500), (1, len(panel)), (700, 2200), (BLOCK + 13, len(panel)), (0, 61), (5, 6)):
        cut = bits(build_features(panel.iloc[first:last], WHOLE), WHOLE.names)
        warm = min(WHOLE.lookback, last - first) if first else 0
        np.testing.assert_array_equal(cut[warm:], everything[first + warm : last])


def test_a_few_columns_alone_are_those_of_the_whole_table(panel: pd.DataFrame) -> None:
    everything = build_features(panel, WHOLE)
    some = r.make_feature_set("some", FEATURES[::7], 240)
    np.testing.assert_array_equal(bits(build_features(panel, some), some.names), bits(everything, some.names))
    for last in (1, 40):
        tail = bits(build_features(panel, some, last=last), some.names)
        np.testing.assert_array_equal(tail, bits(everything.iloc[-last:], some.names))


def test_a_table_may_be_scaled(panel: pd.DataFrame) -> None:
    ranked = r.make_feature_set("ranked", tuple(replace(f, normalise="rank") for f in FEATURES[13:40]), 100)
    built, raw = build_features(panel, ranked), build_features(panel, WHOLE)
    name = "a158_std20"
    expected = raw[name].rolling(100, min_periods=80).apply(lambda w: (w < w.iloc[-1]).sum() / (w.notna().sum() - 1))
    both = built[name].notna() & expected.notna()
    assert both.sum() > 1000
    np.testing.assert_allclose(built.loc[both, name], expected[both], atol=1e-12)


def test_a_column_of_no_table_is_refused() -> None:
    with pytest.raises(UsageError, match="'a158_nothing' is a column of no table"):
        r.table_feature("a158_nothing", unit="x", definition="x", source="x", family="alpha158")
