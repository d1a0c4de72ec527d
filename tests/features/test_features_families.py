"""The wide families: declared lookbacks, look-ahead, hand-made values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from mlbot_core.features import build_features, truncation_check
from mlbot_core.features import registry as r
from mlbot_core.features.liquidity import _corwin_schultz

FAMILIES = ("alpha158", "technical", "momentum", "variance", "liquidity")
WIDE = r.make_feature_set("wide", tuple(f for f in r.all_features() if f.family in FAMILIES), 100)


# the oldest bar seldom or never shows in these at one given bar, though it is in their window: a floor at zero, an
# extreme, a rank, a pattern, or a weight of exp(-20) at each of two or three averages in a row
BLIND = ("roll_", "abdi_", "extreme_", "vol_rank_", "volume_rank_", "engulfing", "three_", "adx_", "trix_", "tema_")


def market(make_panel: Callable[..., pd.DataFrame], bars: int, seed: int, gap_share: float = 0.0) -> pd.DataFrame:
    """A panel whose bars do not open exactly at the close before, as real ones do not."""
    panel = make_panel(bars, seed=seed, gap_share=gap_share)
    panel["open"] *= np.exp(np.random.default_rng(seed).normal(0, 1e-4, bars))
    panel["high"] = np.maximum(panel["high"], panel["open"])
    panel["low"] = np.minimum(panel["low"], panel["open"])
    return panel


def build(panel: pd.DataFrame) -> pd.DataFrame:
    return build_features(panel, WIDE)


def columns(panel: pd.DataFrame, last: int | None = None) -> dict[str, np.ndarray]:
    """Every column of the set, raw, from the last rows of the panel."""
    out = {name: panel[name].to_numpy(np.float64)[-last if last else 0 :].copy() for name in panel if name != "late"}
    for name in WIDE.order:
        out[name] = r.node(name).values(*(out[needed] for needed in r.node(name).inputs))
    return out


def test_the_families_are_wide() -> None:
    count = {family: sum(f.family == family for f in WIDE.features) for family in FAMILIES}
    assert count["alpha158"] == 158
    assert count["technical"] >= 40
    assert count["momentum"] + count["variance"] + count["liquidity"] >= 100


@pytest.mark.parametrize("gap_share", [0.0, 0.03])
def test_no_feature_reads_ahead_or_further_back_than_declared(
    make_panel: Callable[..., pd.DataFrame], gap_share: float
) -> None:
    panel = market(make_panel, 1700, 51, gap_share)
    cuts = np.random.default_rng(52).integers(WIDE.lookback, len(panel), 4)
    result = truncation_check(build, panel, cuts, lookback=WIDE.lookback)
    assert result.passed, result.violations[:5]
    assert result.start_bit_equal is True


@pytest.mark.archive
@pytest.mark.slow
def test_no_feature_reads_ahead_on_recorded_data(archive_panel: pd.DataFrame) -> None:
    part = archive_panel.iloc[-2500:].reset_index(drop=True)
    cuts = np.random.default_rng(53).integers(0, len(part), 30)
    result = truncation_check(build, part, cuts, lookback=WIDE.lookback)
    assert result.passed, result.violations[:5]


def test_every_declared_lookback_suffices_and_is_not_padded(make_panel: Callable[..., pd.DataFrame]) -> None:
    """Each feature by itself: its lookback is enough, and one bar less is not."""
    panel = market(make_panel, 900, 33)
    whole = columns(panel)
    short: dict[int, dict[str, np.ndarray]] = {}
    for f in WIDE.features:
        lookback = r.total_lookback(f.name)
        for bars in (lookback, lookback + 1):
            if bars and bars not in short:
                short[bars] = columns(panel, bars)
        assert np.isfinite(whole[f.name][-1]), f.name
        assert short[lookback + 1][f.name][-1] == whole[f.name][-1], f.name
        if lookback and not f.name.startswith(BLIND):
            assert short[lookback][f.name][-1] != whole[f.name][-1], f.name


def test_features_carry_information(make_panel: Callable[..., pd.DataFrame]) -> None:
    """No column is constant, none is another one's copy."""
    built = build(market(make_panel, 2600, 54)).drop(columns="ts").iloc[WIDE.lookback :]
    assert built.notna().all(axis=None)
    assert (built.nunique() > 1).all()
    close = np.abs(np.corrcoef(built.to_numpy().T)) > 1 - 1e-9
    np.fill_diagonal(close, False)
    names = list(WIDE.names)
    copies = {frozenset((names[i], names[j])) for i, j in np.argwhere(close)}
    # Qlib's own: a share and its complement, a stochastic and its twin
    own = {pair for pair in copies if all(name.startswith("a158_") for name in pair)}
    assert copies == own, copies - own


def test_corwin_schultz_by_hand() -> None:
    high, low = np.array([102.0, 102.2, 110.0]), np.array([100.0, 100.1, 109.0])
    beta = math.log(1.02) ** 2 + math.log(102.2 / 100.1) ** 2
    gamma = math.log(102.2 / 100.0) ** 2
    k = 3 - 2 * math.sqrt(2)
    alpha = (math.sqrt(2 * beta) - math.sqrt(beta)) / k - math.sqrt(gamma / k)
    assert _corwin_schultz(high, low)[1] == pytest.approx(2 * (math.exp(alpha) - 1) / (1 + math.exp(alpha)))
    assert np.isnan(_corwin_schultz(high, low)[0])
    assert _corwin_schultz(high, low)[2] == 0.0


def test_estimators_find_the_volatility_that_made_the_prices() -> None:
    """Fine steps inside bars: every estimator of a driftless walk agrees with the step's deviation."""
    rng = np.random.default_rng(7)
    steps = rng.normal(0, 0.01 / math.sqrt(400), (1200, 400))
    path = np.exp(np.cumsum(steps.ravel()).reshape(1200, 400))
    close = path[:, -1]
    open_ = np.concatenate([[1.0], close[:-1]])
    panel = {
        "ts": np.arange(1200.0),
        "open": open_,
        "high": np.maximum(path.max(axis=1), open_),
        "low": np.minimum(path.min(axis=1), open_),
        "close": close,
        "volume_usd": rng.lognormal(10, 1, 1200),
    }
    got = dict(panel)
    names = tuple(f for f in r.all_features() if f.family == "variance")
    for name in r.make_feature_set("variance", names, 100).order:
        got[name] = r.node(name).values(*(got[needed] for needed in r.node(name).inputs))
    for name in ("har_month", "parkinson_168", "garman_klass_168", "rogers_satchell_168", "yang_zhang_168", "ewma_vol"):
        assert np.nanmean(got[name]) == pytest.approx(0.01, rel=0.07), name
    both = got["semivol_up_168"] ** 2 + got["semivol_down_168"] ** 2
    np.testing.assert_allclose(both[200:], got["har_week_var"][200:], rtol=1e-9)
