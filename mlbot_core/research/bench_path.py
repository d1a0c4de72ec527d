"""One path of the null bench through the pipeline: bars, features, labels, walk-forward LightGBM, simulator, skill."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest.metrics import daily_returns
from mlbot_core.backtest.run import DECISION_LATENCY_MS
from mlbot_core.backtest.simulator import Forecasts, SimulationParams, simulate
from mlbot_core.config import FeesConfig
from mlbot_core.decision.costs import costs_from_fees
from mlbot_core.errors import MissingDataError
from mlbot_core.features.build import build_features
from mlbot_core.features.registry import FeatureSet, all_features, make_feature_set
from mlbot_core.models.base import model_class
from mlbot_core.models.fold_scores import rank_correlation
from mlbot_core.models.training_data import outcomes
from mlbot_core.models.walkforward import walk_forward
from mlbot_core.research.bench_config import FEATURES, Kind, NullBenchConfig, Profile
from mlbot_core.research.bench_skill import PathSkill, measure
from mlbot_core.targets import average_uniqueness
from mlbot_core.targets.build import build_targets
from mlbot_core.timeframe import DAY_MS, Market
from mlbot_core.validation.nulls import (
    GarchParams,
    bootstrap_bars,
    garch_bars,
    planted_signal,
    rotate_targets,
    tilt_for_ic,
)
from mlbot_core.validation.resampling import stationary_indices
from mlbot_core.validation.significance import sharpe_ratio
from mlbot_core.validation.splits import WalkForward

FloatArray = npt.NDArray[np.float64]
PLANTED = "planted"
_NO_FEES = FeesConfig(taker_bp=0.0, maker_bp=0.0, slippage_bp=0.0)
_SETTLE_DELAY_MS = 5_000


@dataclass(frozen=True, eq=False)
class PathResult:
    """What one path showed.

    Parameters
    ----------
    skill
        See :class:`mlbot_core.research.bench_skill.PathSkill`.
    planted_ic
        Rank correlation of the planted column with the outcome over the whole path; NaN without one.
    net_sharpe
        Annual, after costs, at unit exposure.
    folds
        Test windows.
    first_day_ms, net_daily
        Daily net returns at unit exposure, from that UTC day on.
    """

    skill: PathSkill
    planted_ic: float
    net_sharpe: float
    folds: int
    first_day_ms: int
    net_daily: FloatArray


@dataclass(frozen=True, eq=False)
class Prepared:
    """A market's features and the bars around them: shared by every run on the same market."""

    bars: pd.DataFrame
    features: pd.DataFrame
    signal: FloatArray | None


def bench_features(config: NullBenchConfig) -> FeatureSet:
    """Return the bench's feature set."""
    by_name = {feature.name: feature for feature in all_features()}
    missing = [name for name in FEATURES if name not in by_name]
    if missing:
        raise MissingDataError(f"the null bench names features that are not registered: {', '.join(missing)}")
    return make_feature_set("null-bench", tuple(by_name[name] for name in FEATURES), config.zscore_window)


def prepare(
    config: NullBenchConfig, kind: Kind, path: int, features: FeatureSet, recorded: pd.DataFrame | None
) -> Prepared:
    """Make the market of a path and its features; ``shuffled`` shares the market of ``garch``.

    Raises
    ------
    MissingDataError
        If ``bootstrap`` is asked for without recorded bars.
    """
    market = Market.parse(f"BTC-{config.timeframe}")
    seed = config.seed + path
    # one horizon more, so that the last of the path's bars has its label too
    n = features.lookback + config.bars + config.profile(kind).targets.horizon
    params = GarchParams(config.bar_volatility, config.alpha, config.beta, config.degrees, config.steps)
    signal: FloatArray | None = None
    if kind == "bootstrap":
        if recorded is None:
            raise MissingDataError("bootstrapped real returns need the recorded bars; set MLBOT_ARCHIVE_DIR")
        index = stationary_indices(len(recorded) - 1, 1, config.mean_block, seed)[0][:n] + 1
        bars = bootstrap_bars(recorded, index, market.timeframe, seed=seed)
    elif kind == "planted":
        horizon = config.power.targets.horizon
        signal = planted_signal(n, config.half_life, seed=seed, shape=config.shape)
        strength = config.tilt_scale * tilt_for_ic(config.planted_ic, horizon, config.half_life)
        # a bar's signal is known at its close and moves the bars after it
        bars = garch_bars(n, params, market.timeframe, seed=seed, tilt=strength * np.r_[0.0, signal[:-1]])
    else:
        bars = garch_bars(n, params, market.timeframe, seed=seed)
    built = build_features(bars, features)
    if signal is not None:
        # in the place of the last column, so that there are thirty here too
        built = built.drop(columns=FEATURES[-1]).assign(**{PLANTED: signal})
    return Prepared(bars, built, signal)


def run_path(
    config: NullBenchConfig, kind: Kind, purge: bool, path: int, features: FeatureSet, prepared: Prepared
) -> PathResult:
    """Run the pipeline over a prepared market.

    Without purging, split and leak check are told that every label is known right after its own bar's close, as a
    pipeline believes that has no notion of label intervals: the same code then finds nothing to purge.
    """
    market = Market.parse(f"BTC-{config.timeframe}")
    profile = config.profile(kind)
    every = build_targets(prepared.bars, market, profile.targets)
    window = slice(features.lookback, features.lookback + config.bars)
    x = prepared.features.iloc[window].reset_index(drop=True)
    y = every.iloc[window].reset_index(drop=True)
    if kind == "shuffled":
        offset = np.random.default_rng(config.seed + path).integers(features.lookback, config.bars - features.lookback)
        y = rotate_targets(y, y["tb_t1"].to_numpy() >= 0, int(offset))
    forecasts, folds = _forecasts(x, y, profile, market, purge)
    rows = forecasts.merge(y, on="ts", validate="one_to_one")
    bars = forecasts[["ts"]].merge(prepared.bars, on="ts", validate="one_to_one")
    gross, net = (_daily(rows, bars, market, fees) for fees in (_NO_FEES, config.fees))
    forecast = rows["score"].to_numpy(dtype=np.float64)
    outcome = (rows["tb_ret"] / rows["tb_width"]).to_numpy(dtype=np.float64)
    skill = measure(
        forecast,
        outcome,
        rows["tb_label"].to_numpy(dtype=np.float64),
        rows["fold"].to_numpy(dtype=np.int64),
        np.asarray(rows.groupby("fold").cumcount(), dtype=np.int64),
        profile.boundary_bars,
        gross["ret"].to_numpy(dtype=np.float64),
    )
    net_daily = net["ret"].to_numpy(dtype=np.float64)
    came = (y["tb_ret"] / y["tb_width"]).to_numpy(dtype=np.float64)
    planted = math.nan if prepared.signal is None else rank_correlation(prepared.signal[window], came)
    return PathResult(skill, planted, sharpe_ratio(net_daily), folds, int(net["day"].iloc[0]), net_daily)


def _forecasts(
    x: pd.DataFrame, y: pd.DataFrame, profile: Profile, market: Market, purge: bool
) -> tuple[pd.DataFrame, int]:
    t0, t1 = y["t0"].to_numpy(dtype=np.int64), y["tb_t1"].to_numpy(dtype=np.int64)
    claimed = t1 if purge else np.where(t1 >= 0, t0 + 1, t1)
    ts = x["ts"].to_numpy(dtype=np.int64)
    start = int(ts[0]) + profile.walk_forward.min_train_days * DAY_MS
    # the splitter asks for so many days before the first test window; purging takes a little off them
    wanted = profile.walk_forward.model_copy(update={"min_train_days": profile.walk_forward.min_train_days - 2})
    split = WalkForward(wanted).split(t0, claimed, start, int(ts[-1]) + market.timeframe.ms, market.timeframe)
    make = model_class("lightgbm")
    result = walk_forward(
        x.set_index("ts"),
        outcomes(y, profile.targets.barrier_width, "label").assign(t1=claimed).set_index(pd.Index(ts, name="ts")),
        list(split),
        lambda: make.from_config(profile.lightgbm, 1),
        model_version="null-bench",
        weights=lambda rows: average_uniqueness(t0[rows], t1[rows], market.timeframe.ms),
    )
    return result.forecasts, len(split)


def _daily(rows: pd.DataFrame, bars: pd.DataFrame, market: Market, fees: FeesConfig) -> pd.DataFrame:
    costs = costs_from_fees(fees)
    params = SimulationParams(
        timeframe_ms=market.timeframe.ms,
        delay_ms=_SETTLE_DELAY_MS + DECISION_LATENCY_MS,
        fee=costs.taker,
        slippage=costs.slippage,
        initial_nav=10_000.0,
        cost_round_trip=costs.round_trip,
        # unit exposure: all of the NAV, never trimmed
        cap=1.0,
        trim_ratio=float("inf"),
    )
    ts, open_, high, low, close = (bars[name].to_numpy() for name in ("ts", "open", "high", "low", "close"))
    done = simulate(ts, open_, high, low, close, Forecasts(rows["score"] * rows["tb_width"]), params)
    return daily_returns(done.ts, done.nav, params.initial_nav)
