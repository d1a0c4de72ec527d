"""Crowding: top traders and the crowd against the same formulas written with pandas, and their symmetry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.features import registry as r

Raw = Callable[[pd.DataFrame, str], np.ndarray]


def odds(p: pd.DataFrame, column: str) -> pd.Series:
    return np.log(p[column] / (1 - p[column]))


def top(p: pd.DataFrame) -> pd.Series:
    return odds(p, "top_position_share")


def accounts(p: pd.DataFrame) -> pd.Series:
    return odds(p, "top_account_share")


def gap(p: pd.DataFrame) -> pd.Series:
    return top(p) - odds(p, "long_share")


def rank(x: pd.Series, n: int) -> pd.Series:
    return x.rolling(n).rank().sub(1).div(n - 1)


REFERENCES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "top_account_level": accounts,
    "top_account_change_4": lambda p: accounts(p).diff(4),
    "top_account_change_24": lambda p: accounts(p).diff(24),
    "top_position_level": top,
    "top_position_change_4": lambda p: top(p).diff(4),
    "top_position_change_24": lambda p: top(p).diff(24),
    "top_position_rank_168": lambda p: rank(top(p), 168),
    "top_size_tilt": lambda p: top(p) - accounts(p),
    "top_crowd_spread": gap,
    "top_crowd_spread_mean_168": lambda p: gap(p).rolling(168).mean(),
    "top_crowd_spread_change_24": lambda p: gap(p).diff(24),
    "top_crowd_spread_rank_168": lambda p: rank(gap(p), 168),
    "top_price_corr_48": lambda p: top(p).diff().rolling(48).corr(np.log(p.close).diff()),
    "crowd_extreme_48": lambda p: ((2 * rank(odds(p, "long_share"), 168) - 1) ** 3).rolling(48).mean(),
}


@pytest.fixture(scope="module")
def panel(make_full_panel: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return make_full_panel(600, seed=42)


def test_every_feature_of_the_family_has_a_reference() -> None:
    assert {f.name for f in r.all_features() if f.family == "crowding"} == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_feature_equals_pandas(name: str, panel: pd.DataFrame, raw_values: Raw) -> None:
    expected = REFERENCES[name](panel).to_numpy()[300:]
    got = raw_values(panel, name)[300:]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-10)


SIGNED = ("top_position_level", "top_account_level", "top_size_tilt", "top_crowd_spread", "top_position_change_24")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 5), name=st.sampled_from(SIGNED))
def test_long_and_short_are_mirror_images(
    make_full_panel: Callable[..., pd.DataFrame], raw_values: Raw, seed: int, name: str
) -> None:
    """Swapping longs and shorts everywhere turns the sign of every odds feature and nothing else."""
    panel = make_full_panel(120, seed=seed)
    swapped = panel.assign(
        **{column: 1 - panel[column] for column in ("long_share", "top_account_share", "top_position_share")}
    )
    np.testing.assert_allclose(raw_values(swapped, name), -raw_values(panel, name), rtol=1e-9, atol=1e-12)


def test_no_one_on_the_other_side_is_missing_not_infinite(panel: pd.DataFrame, raw_values: Raw) -> None:
    share = panel["top_position_share"].copy()
    share.iloc[[300, 301]] = [0.0, 1.0]
    got = raw_values(panel.assign(top_position_share=share), "top_position_level")
    assert np.isnan(got[[300, 301]]).all()
    assert np.isfinite(got[302])
