"""Funding, open interest and basis against the same formulas written with pandas."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mlbot_core.features import registry as r

BARS = 700


def ret(p: pd.DataFrame, n: int = 1) -> pd.Series:
    return np.log(p["close"]).diff(n)


def coins(p: pd.DataFrame) -> pd.Series:
    return np.log(p["oi_usd"] / p["close"])


def rank(x: pd.Series, n: int) -> pd.Series:
    return x.rolling(n).rank().sub(1).div(n - 1)


def side(p: pd.DataFrame, sign: int) -> pd.Series:
    grew = (np.sign(coins(p).diff()) == sign).astype(float)
    return (np.sign(ret(p)) * grew).where(coins(p).diff().notna()).rolling(48, min_periods=39).mean()


def pair_coins(p: pd.DataFrame) -> pd.Series:
    return np.log(p["oi_pair_coin"].fillna(p["oi_pair_usd"] / p["close"]))


def basis(p: pd.DataFrame) -> pd.Series:
    return np.log(p["close"] / p["spot_close"])


def margin(p: pd.DataFrame) -> pd.Series:
    return np.log(p["oi_coinm_usd"] / (p["oi_stable_coin"] * p["close"]))


def lead(p: pd.DataFrame) -> pd.Series:
    spot, perp = np.log(p["spot_close"]).diff(), ret(p)
    return perp.rolling(96).corr(spot.shift()) - spot.rolling(96).corr(perp.shift())


def funding_formula(p: pd.DataFrame) -> pd.Series:
    premium = p["premium_index"].rolling(8).mean()
    return premium + (0.0001 - premium).clip(-0.0005, 0.0005) - p["funding_settled"]


REFERENCES: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "funding_z_48": lambda p: (p.funding_rate - p.funding_rate.rolling(48).mean()) / p.funding_rate.rolling(48).std(),
    "funding_carry_168": lambda p: p.funding_rate.rolling(168).mean() * 1095,
    "funding_unrest_48": lambda p: p.funding_rate.rolling(48).std(),
    "funding_range": lambda p: p.funding_high - p.funding_low,
    "funding_side_168": lambda p: (p.funding_rate > 0).rolling(168).mean() - (p.funding_rate < 0).rolling(168).mean(),
    "funding_price_corr_96": lambda p: p.funding_rate.diff(8).rolling(96).corr(ret(p, 8)),
    "funding_risk_48": lambda p: p.funding_rate.rolling(48).mean() / ret(p).rolling(48).std(),
    "funding_surprise": lambda p: p.funding_rate - p.funding_settled,
    "funding_pair_spread": lambda p: p.funding_pair - p.funding_rate,
    "funding_pair_change_8": lambda p: p.funding_pair.diff(8),
    "funding_volume_spread": lambda p: p.funding_volume - p.funding_rate,
    "oi_coin_change_4": lambda p: coins(p).diff(4),
    "oi_coin_change_24": lambda p: coins(p).diff(24),
    "oi_coin_change_72": lambda p: coins(p).diff(72),
    "oi_coin_rank_168": lambda p: rank(coins(p), 168),
    "oi_unwound_168": lambda p: coins(p) - coins(p).rolling(168).max(),
    "oi_flush_24": lambda p: coins(p).diff().rolling(24).min() / coins(p).diff().rolling(168).std(),
    "oi_range": lambda p: np.log(p.oi_high_usd / p.oi_low_usd),
    "oi_price_beta_96": lambda p: coins(p).diff().rolling(96).cov(ret(p)) / ret(p).rolling(96).var(),
    "oi_opening_side_48": lambda p: side(p, 1),
    "oi_closing_side_48": lambda p: side(p, -1),
    "oi_pair_share": lambda p: pair_coins(p) - coins(p),
    "oi_pair_change_4": lambda p: pair_coins(p).diff(4),
    "oi_pair_change_24": lambda p: pair_coins(p).diff(24),
    "oi_coin_margin_odds": margin,
    "oi_coin_margin_shift_24": lambda p: margin(p).diff(24),
    "oi_to_spot_volume_24": lambda p: np.log(p.oi_usd / p.spot_volume_usd.rolling(24).sum()),
    "basis_spot": basis,
    "basis_mean_72": lambda p: basis(p).rolling(72).mean(),
    "basis_change_4": lambda p: basis(p).diff(4),
    "basis_change_24": lambda p: basis(p).diff(24),
    "basis_unrest_48": lambda p: basis(p).rolling(48).std(),
    "basis_price_corr_48": lambda p: basis(p).diff().rolling(48).corr(ret(p)),
    "spot_lead_96": lead,
    "spot_volume_share_24": lambda p: np.log(p.spot_volume_usd.rolling(24).sum() / p.volume_usd.rolling(24).sum()),
    "mark_index_gap": lambda p: np.log(p.mark_close / p.index_close),
    "last_mark_gap": lambda p: np.log(p.close / p.mark_close),
    "premium_level": lambda p: p.premium_index,
    "premium_mean_24": lambda p: p.premium_index.rolling(24).mean(),
    "premium_change_8": lambda p: p.premium_index.diff(8),
    "premium_funding_gap": funding_formula,
}


@pytest.fixture(scope="module")
def panel(make_full_panel: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    return make_full_panel(BARS, seed=41)


def test_every_feature_of_these_families_has_a_reference() -> None:
    names = {f.name for f in r.all_features() if f.family in {"funding", "open_interest", "basis"}}
    assert names == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_feature_equals_pandas(
    name: str, panel: pd.DataFrame, raw_values: Callable[[pd.DataFrame, str], np.ndarray]
) -> None:
    expected = REFERENCES[name](panel).to_numpy()[300:]
    got = raw_values(panel, name)[300:]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-12)


def test_open_interest_in_coins_does_not_grow_with_the_price_alone(
    panel: pd.DataFrame, raw_values: Callable[[pd.DataFrame, str], np.ndarray]
) -> None:
    """The same coins at a price that moves: USD open interest changes, coins do not."""
    held = panel.assign(oi_usd=5e5 * panel["close"])
    assert np.nanmax(np.abs(raw_values(held, "oi_change_24"))) > 0.01
    np.testing.assert_allclose(raw_values(held, "oi_coin_change_24")[24:], 0.0, atol=1e-12)


def test_the_venues_own_coins_stand_in_where_no_usd_is_served(
    panel: pd.DataFrame, raw_values: Callable[[pd.DataFrame, str], np.ndarray]
) -> None:
    in_coins = panel.assign(oi_pair_coin=panel["oi_pair_usd"] / panel["close"], oi_pair_usd=np.nan)
    in_usd = panel.assign(oi_pair_coin=np.nan)
    for name in ("oi_pair_change_24", "oi_pair_share"):
        np.testing.assert_allclose(
            raw_values(in_coins, name)[24:], raw_values(in_usd, name)[24:], rtol=1e-9, atol=1e-12
        )


def test_funding_gap_is_zero_where_the_premium_implies_what_was_paid(
    panel: pd.DataFrame, raw_values: Callable[[pd.DataFrame, str], np.ndarray]
) -> None:
    """A premium within 0.05 % of the interest of 0.01 % settles at 0.01 %; one of 0.2 % at 0.15 %."""
    calm = panel.assign(premium_index=0.0003, funding_settled=0.0001)
    np.testing.assert_allclose(raw_values(calm, "premium_funding_gap")[8:], 0.0, atol=1e-15)
    hot = panel.assign(premium_index=0.002, funding_settled=0.0015)
    np.testing.assert_allclose(raw_values(hot, "premium_funding_gap")[8:], 0.0, atol=1e-15)
