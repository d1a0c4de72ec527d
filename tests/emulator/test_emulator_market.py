"""Invariants of the synthetic market.

1. A bar's values depend on the seed and the mode alone: not on how far, in how many pieces or where it was made.
2. A longer bar is its children combined; a closed bar never changes; an open one grows into its closed form.
3. ``null`` cannot be predicted from its past; ``planted`` can, through the taker imbalance.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.emulator import SyntheticMarket, process
from mlbot_core.emulator.market import SERIES
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, Timeframe

START = 1_704_067_200_000
LABELS = ["5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d"]
RULES = {
    "first": lambda block: block[:, 0],
    "max": lambda block: block.max(axis=1),
    "min": lambda block: block.min(axis=1),
    "last": lambda block: block[:, -1],
    "sum": lambda block: block.sum(axis=1),
}


def frame(market: SyntheticMarket, series: str, label: str, first: int, last: int, now: int):
    return market.bars(series, Timeframe.parse(label), first, last, now)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    mode=st.sampled_from(["planted", "null"]),
    ends=st.lists(st.integers(1, 80 * 288), min_size=1, max_size=4),
)
def test_a_later_end_never_changes_earlier_bars(seed: int, mode, ends: list[int]) -> None:
    whole = SyntheticMarket(seed, START, mode).base(START + 81 * DAY_MS)
    pieces = SyntheticMarket(seed, START, mode)
    for end in ends:
        part = pieces.base(START + end * process.STEP_MS)
        assert part.shape == (len(process.COLUMNS), end)
        np.testing.assert_array_equal(part, whole[:, :end])


def test_another_process_makes_the_same_market() -> None:
    code = (
        "import hashlib; from mlbot_core.emulator import SyntheticMarket;"
        f"b = SyntheticMarket(11, {START}, 'planted').base({START + 40 * DAY_MS});"
        "print(hashlib.sha256(b.tobytes()).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    here = hashlib.sha256(SyntheticMarket(11, START, "planted").base(START + 40 * DAY_MS).tobytes()).hexdigest()
    assert out.stdout.strip() == here


def test_seeds_and_modes_differ() -> None:
    end = START + 10 * DAY_MS
    first, second = SyntheticMarket(1, START).base(end), SyntheticMarket(2, START).base(end)
    null = SyntheticMarket(1, START, "null").base(end)
    assert not np.array_equal(first[3], second[3])
    assert not np.array_equal(first[3], null[3])


def test_bars_are_possible_prices_and_flows(planted: SyntheticMarket) -> None:
    bars = dict(zip(process.COLUMNS, planted.base(START + 400 * DAY_MS), strict=True))
    for prefix in ("price", "oi", "funding"):
        o, h, low, c = (bars[f"{prefix}_{name}"] for name in ("open", "high", "low", "close"))
        assert np.all(h >= np.maximum(o, c))
        assert np.all(low <= np.minimum(o, c))
        np.testing.assert_array_equal(o[1:], c[:-1])
    assert np.all(np.isfinite(np.array(list(bars.values()))))
    assert bars["price_low"].min() > 0
    assert bars["oi_low"].min() > 0
    assert bars["turnover"].min() > 0
    assert min(bars["taker_buy"].min(), bars["taker_sell"].min()) > 0
    assert min(bars["liq_long"].min(), bars["liq_short"].min()) == 0
    assert 0 < bars["long_percent"].min() < bars["long_percent"].max() < 100


def test_the_market_looks_like_one(planted: SyntheticMarket) -> None:
    """Stylised facts, wide bounds: fat tails, volatility clustering, longs liquidated on falls, shorts on rises."""
    end = START + 2 * 365 * DAY_MS
    price = frame(planted, "price", "1h", START, end, end).values
    moves = np.log(price["close"] / price["open"])
    assert 0.003 < moves.std() < 0.009
    assert np.mean((moves / moves.std()) ** 4) > 4
    size = np.abs(moves)
    for lag, least in ((1, 0.1), (24, 0.05)):
        assert np.corrcoef(size[lag:], size[:-lag])[0, 1] > least
    liquidated = frame(planted, "liquidations", "1h", START, end, end).values
    falls, rises = moves < -2 * moves.std(), moves > 2 * moves.std()
    assert liquidated["long"][falls].mean() > 5 * liquidated["long"].mean()
    assert liquidated["short"][rises].mean() > 5 * liquidated["short"].mean()
    assert liquidated["long"][rises].mean() < liquidated["long"].mean() * 2
    daily = frame(planted, "liquidations", "1d", START, end, end).values["long"]
    assert np.max(daily) > 10 * np.median(daily)
    funding = frame(planted, "funding", "1d", START, end, end).values["close"]
    closes = frame(planted, "price", "1d", START, end, end).values["close"]
    assert np.corrcoef(funding[3:], np.log(closes[3:] / closes[:-3]))[0, 1] > 0.3


@settings(max_examples=60, deadline=None)
@given(
    series=st.sampled_from(sorted(SERIES)),
    pair=st.sampled_from([(a, b) for i, a in enumerate(LABELS) for b in LABELS[i + 1 :]]),
    first=st.integers(0, 30),
    days=st.integers(1, 12),
)
def test_a_longer_bar_is_its_children_combined(
    planted: SyntheticMarket, series: str, pair: tuple[str, str], first: int, days: int
) -> None:
    short, long = (Timeframe.parse(label) for label in pair)
    if long.ms % short.ms:
        return
    begin, now = START + first * DAY_MS, START + 60 * DAY_MS
    end = begin + days * DAY_MS - 1
    children, parents = (planted.bars(series, tf, begin, end, now) for tf in (short, long))
    k = long.ms // short.ms
    np.testing.assert_array_equal(parents.ts, children.ts[::k])
    assert not parents.open_last
    for name, _, rule in SERIES[series]:
        combined = RULES[rule](children.values[name].reshape(-1, k))
        if rule == "sum":
            np.testing.assert_allclose(parents.values[name], combined, rtol=1e-12)
        else:
            np.testing.assert_array_equal(parents.values[name], combined)


@settings(max_examples=60, deadline=None)
@given(
    series=st.sampled_from(sorted(SERIES)),
    label=st.sampled_from(LABELS),
    now=st.integers(START + 20 * DAY_MS, START + 21 * DAY_MS),
    step=st.integers(1, 3 * HOUR_MS),
)
def test_only_the_open_bar_moves_and_it_only_grows(
    planted: SyntheticMarket, series: str, label: str, now: int, step: int
) -> None:
    tf = Timeframe.parse(label)
    before = planted.bars(series, tf, now - 5 * DAY_MS, now, now)
    after = planted.bars(series, tf, now - 5 * DAY_MS, now + step, now + step)
    assert before.ts[-1] < now
    assert before.open_last == (before.ts[-1] + tf.ms > now)
    closed = before.ts + tf.ms <= now
    assert closed[:-1].all()
    overlap = np.searchsorted(after.ts, before.ts)
    np.testing.assert_array_equal(after.ts[overlap], before.ts)
    for name, _, rule in SERIES[series]:
        earlier, later = before.values[name], after.values[name][overlap]
        np.testing.assert_array_equal(earlier[closed], later[closed])
        if rule in ("max", "sum"):
            assert later[-1] >= earlier[-1]
        elif rule == "min":
            assert later[-1] <= earlier[-1]
        elif rule == "first":
            assert later[-1] == earlier[-1]


def test_before_the_start_and_after_now_there_is_nothing(planted: SyntheticMarket) -> None:
    assert frame(planted, "price", "1h", START - 10 * DAY_MS, START - 1, START + DAY_MS).ts.size == 0
    assert frame(planted, "price", "1h", START, START + DAY_MS, START).ts.size == 0
    bars = frame(planted, "price", "1h", START - DAY_MS, START + DAY_MS, START + 90_000)
    assert bars.ts.tolist() == [START]
    assert bars.open_last


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((1, START, "wild"), "wild"),
        ((-1, START), "-1"),
        ((1, START + 1), str(START + 1)),
    ],
)
def test_a_wrong_market_is_refused_by_name(arguments: tuple, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        SyntheticMarket(*arguments)


def test_a_wrong_question_is_refused(planted: SyntheticMarket) -> None:
    with pytest.raises(UsageError, match="gold"):
        frame(planted, "gold", "1h", START, START + DAY_MS, START + DAY_MS)
    with pytest.raises(UsageError, match="3m"):
        frame(planted, "price", "3m", START, START + DAY_MS, START + DAY_MS)


def test_three_years_are_made_fast() -> None:
    SyntheticMarket(3, START).base(START + DAY_MS)  # load or build the compiled loop
    begin = time.perf_counter()
    bars = SyntheticMarket(3, START).base(START + 3 * 365 * DAY_MS)
    assert time.perf_counter() - begin < 1.5
    assert bars.shape[1] == 3 * 365 * 288


def martingale_t(signal: np.ndarray, outcome: np.ndarray) -> float:
    """Self-normalised E[signal x outcome] = 0: standard normal for martingale differences of any volatility."""
    product = (signal - signal.mean()) * outcome
    return float(product.sum() / np.sqrt((product**2).sum()))


def flow_and_returns(mode, seed: int, label: str, horizon: int, days: int = 3 * 365):
    """Trailing taker imbalance over ``horizon // 3`` bars at a close and the return over the next ``horizon``."""
    market = SyntheticMarket(seed, START, mode)
    end = START + days * DAY_MS
    price = frame(market, "price", label, START, end, end).values
    taker = frame(market, "taker", label, START, end, end).values
    imbalance = (taker["buy"] - taker["sell"]) / (taker["buy"] + taker["sell"])
    window = max(1, horizon // 3)
    trailing = np.convolve(imbalance, np.ones(window) / window)[: len(imbalance)]
    ahead = price["close"][horizon:] / price["close"][:-horizon] - 1
    return trailing[window:-horizon], ahead[window:]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_null_returns_have_no_memory(seed: int) -> None:
    market = SyntheticMarket(seed, START, "null")
    end = START + 3 * 365 * DAY_MS
    price = frame(market, "price", "1h", START, end, end).values
    moves = price["close"] / price["open"] - 1
    # 25 looks: a standard normal passes 4 in any of them once in 600 times; the seeds are fixed.
    assert abs(moves.sum() / np.sqrt((moves**2).sum())) < 4
    for lag in range(1, 25):
        product = moves[lag:] * moves[:-lag]
        assert abs(product.sum() / np.sqrt((product**2).sum())) < 4, lag


@pytest.mark.parametrize("label", ["30m", "1h", "2h", "4h"])
def test_null_flow_says_nothing_about_the_next_bars(label: str) -> None:
    scores = []
    for seed in (1, 2, 3):
        signal, ahead = flow_and_returns("null", seed, label, 12)
        scores.append(martingale_t(signal[::12], ahead[::12]))  # every 12th: the outcomes do not overlap
    assert max(map(abs, scores)) < 3.5
    assert abs(sum(scores)) / np.sqrt(len(scores)) < 3


@pytest.mark.parametrize("label", ["30m", "1h", "2h", "4h"])
def test_planted_flow_leads_the_next_bars(label: str) -> None:
    for seed in (1, 2, 3):
        signal, ahead = flow_and_returns("planted", seed, label, 12)
        ic = float(np.corrcoef(signal, ahead)[0, 1])
        assert 0.08 < ic < 0.40, (seed, ic)
        assert martingale_t(signal[::12], ahead[::12]) > 2.5, seed
