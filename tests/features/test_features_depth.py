"""Order-book depth against pandas, its one-bar delay, and its symmetry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mlbot_core.features import registry as r

Raw = Callable[[pd.DataFrame, str], np.ndarray]


def lean(p: pd.DataFrame, prefix: str = "book") -> pd.Series:
    bids, asks = p[f"{prefix}_bids_usd"], p[f"{prefix}_asks_usd"]
    return (bids - asks) / (bids + asks)


def amount(p: pd.DataFrame, prefix: str = "book") -> pd.Series:
    return p[f"{prefix}_bids_usd"] + p[f"{prefix}_asks_usd"]


def taker(p: pd.DataFrame) -> pd.Series:
    return (p.taker_buy_usd - p.taker_sell_usd) / (p.taker_buy_usd + p.taker_sell_usd)


REFERENCES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "depth_imbalance": lean,
    "depth_imbalance_mean_24": lambda p: lean(p).rolling(24).mean(),
    "depth_imbalance_change_4": lambda p: lean(p).diff(4),
    "depth_all_imbalance": lambda p: lean(p, "book_all"),
    "depth_all_imbalance_mean_24": lambda p: lean(p, "book_all").rolling(24).mean(),
    "depth_amount": lambda p: np.log(amount(p)),
    "depth_term": lambda p: np.log(amount(p).rolling(12).mean() / amount(p).rolling(96).mean()),
    "depth_to_volume_24": lambda p: np.log(amount(p) / p.volume_usd.rolling(24).mean()),
    "depth_pair_share": lambda p: np.log(amount(p) / amount(p, "book_all")),
    "depth_width": lambda p: np.log((p.book_asks_usd / p.book_asks_coin) / (p.book_bids_usd / p.book_bids_coin)),
    "depth_lead_corr_96": lambda p: np.log(p.close).diff().rolling(96).corr(lean(p).shift()),
    "depth_flow_corr_96": lambda p: lean(p).rolling(96).corr(taker(p)),
    "depth_to_oi": lambda p: np.log(amount(p, "book_all") / p.oi_usd),
    "depth_to_liq_24": lambda p: (
        p.liq_long_usd.rolling(24).sum() / p.book_all_bids_usd - p.liq_short_usd.rolling(24).sum() / p.book_all_asks_usd
    ),
}


@pytest.fixture(scope="module")
def panel(make_full_panel: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return make_full_panel(500, seed=44)


def test_every_feature_of_the_family_has_a_reference() -> None:
    assert {f.name for f in r.all_features() if f.family == "depth"} == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_feature_equals_pandas(name: str, panel: pd.DataFrame, raw_values: Raw) -> None:
    expected = REFERENCES[name](panel).to_numpy()[200:]
    got = raw_values(panel, name)[200:]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-10)


def test_bids_and_asks_are_mirror_images(panel: pd.DataFrame, raw_values: Raw) -> None:
    mirror = panel.rename(
        columns={
            f"{book}_{a}_usd": f"{book}_{b}_usd"
            for book in ("book", "book_all")
            for a, b in (("bids", "asks"), ("asks", "bids"))
        }
    )
    for name in ("depth_imbalance", "depth_all_imbalance", "depth_imbalance_mean_24", "depth_imbalance_change_4"):
        np.testing.assert_allclose(raw_values(mirror, name), -raw_values(panel, name), rtol=1e-12, atol=1e-15)
    for name in ("depth_amount", "depth_term", "depth_pair_share"):
        np.testing.assert_allclose(raw_values(mirror, name), raw_values(panel, name), rtol=1e-12)


def test_a_book_that_is_still_moving_is_not_looked_at(
    make_full_inputs: Callable[..., dict], panel: pd.DataFrame
) -> None:
    """The newest closed bar of a book is served again with other values: rows hold the one before."""
    book = make_full_inputs(500, seed=44)["order_book"].frame
    np.testing.assert_array_equal(panel["book_bids_usd"].to_numpy()[1:], book["bids_usd"].to_numpy()[:-1])
    assert np.isnan(panel["book_bids_usd"].iloc[0])
    assert (panel["book_age_h"].iloc[1:] == 1.0).all()
    assert not panel["late"].any()
