"""How fast the statistics of validation are, each beside the obvious way to do the same, in one run.

- PBO by CSCV of 500 configurations x 2,000 days x 16 blocks (12,870 combinations), beside numpy on the daily returns of
  each half (some of the combinations, scaled up).
- 10,000 stationary bootstrap intervals of Sharpe ratios (10,000 series of 2,000 days, 1,000 resamples each, block
  length chosen from the data), and one interval from 10,000 resamples, both beside arch's StationaryBootstrap.conf_int
  (some of the resamples, scaled up).
- Purging 1,000,000 label intervals of random lengths (one test fold of ten, embargo), beside comparing each row with
  all test labels in numpy (some of the rows, scaled up).
- Splitting 1,000,000 rows with labels of one length, combinatorial purged and walk forward, beside skfolio, which
  purges by a number of rows.
- Hansen's test over 500 candidates, beside arch.bootstrap.SPA; the effective number of 1,000 trials.

The results of both ways are compared where they are the same number. Compiled code is warmed up before.

    python benchmarks/validation.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlbot_core.validation.bootstrap import bootstrap_sharpe_interval, bootstrap_sharpe_intervals
from mlbot_core.validation.cpcv import CombinatorialPurged
from mlbot_core.validation.effective_trials import effective_trials
from mlbot_core.validation.intervals import LabelIntervals, purge
from mlbot_core.validation.overfitting import pbo_cscv
from mlbot_core.validation.resampling import chosen_block_length
from mlbot_core.validation.spa import superior_predictive_ability
from mlbot_core.validation.walk_forward_cv import WalkForwardCV


@dataclass(frozen=True)
class Row:
    what: str
    size: str
    seconds: float
    beside: str
    beside_seconds: float
    measured_share: float  # of the work that the other way was really given

    @property
    def ratio(self) -> float:
        return self.beside_seconds / self.seconds


def timed(act: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = act()
    return result, time.perf_counter() - started


def market(days: int, count: int) -> np.ndarray:
    generator = np.random.default_rng(1)
    returns = generator.standard_normal((days, count))
    returns *= 0.02
    returns += 0.0005
    return returns


def naive_pbo(returns: np.ndarray, blocks: int, most: int) -> tuple[np.ndarray, int]:
    parts = np.array_split(returns, blocks)
    combinations = list(itertools.combinations(range(blocks), blocks // 2))
    step = max(1, len(combinations) // most)
    logits = []
    for chosen in combinations[::step]:
        train = np.concatenate([parts[b] for b in chosen])
        test = np.concatenate([parts[b] for b in range(blocks) if b not in chosen])
        best = int(np.argmax(train.mean(axis=0) / train.std(axis=0, ddof=1)))
        out = test.mean(axis=0) / test.std(axis=0, ddof=1)
        rank = 1 + int((out < out[best]).sum())
        logits.append(math.log(rank / (returns.shape[1] + 1 - rank)))
    return np.array(logits), step


def bench_pbo(configurations: int, days: int, blocks: int, most: int) -> Row:
    returns = market(days, configurations)
    pbo_cscv(returns[:64, :3], 4)
    result, seconds = timed(lambda: pbo_cscv(returns, blocks))
    (logits, step), other = timed(lambda: naive_pbo(returns, blocks, most))
    np.testing.assert_allclose(result.logits[::step], logits, rtol=1e-9, atol=1e-9)
    share = len(logits) / len(result.logits)
    size = f"{configurations} x {days} days x {blocks} blocks = {len(result.logits)} combinations"
    return Row("PBO by CSCV", size, seconds, "numpy on daily returns", other / share, share)


def arch_sharpe(returns: np.ndarray, length: float, resamples: int) -> Any:
    from arch.bootstrap import StationaryBootstrap

    def statistic(x: np.ndarray) -> float:
        return float(x.mean() / x.std(ddof=1) * math.sqrt(365))

    return StationaryBootstrap(length, returns, seed=1).conf_int(statistic, resamples, method="percentile")


def bench_intervals(series: int, days: int, resamples: int, given: int) -> Row:
    returns = market(days, series)
    bootstrap_sharpe_intervals(returns[:, :2], n_resamples=10)
    arch_sharpe(returns[:, 0], 3, 10)
    found, seconds = timed(lambda: bootstrap_sharpe_intervals(returns, n_resamples=resamples))
    covered = np.mean([i.low <= 0.0005 / 0.02 * math.sqrt(365) <= i.high for i in found])
    if not 0.9 < covered < 0.99:
        raise AssertionError(f"95 % intervals of independent returns cover the truth in {covered:.1%}")
    _, other = timed(lambda: arch_sharpe(returns[:, 0], 3, given))
    share = given / (series * resamples)
    size = f"{series} series x {days} days x {resamples} resamples"
    return Row("bootstrap Sharpe intervals", size, seconds, "arch conf_int, one by one", other / share, share)


def bench_one_interval(days: int, resamples: int, given: int) -> Row:
    returns = market(days, 1)[:, 0]
    bootstrap_sharpe_interval(returns, n_resamples=10)
    arch_sharpe(returns, 3, 10)
    length = max(2, round(chosen_block_length(returns[:, None])))
    got, seconds = timed(lambda: bootstrap_sharpe_interval(returns, n_resamples=resamples, block_length=length))
    ends, other = timed(lambda: arch_sharpe(returns, length, given))
    deviation = (got.high - got.low) / 4
    if max(abs(got.low - ends[0, 0]), abs(got.high - ends[1, 0])) > 5 * 2.7 * deviation / math.sqrt(given):
        raise AssertionError(f"the interval [{got.low}, {got.high}] is not arch's {ends.ravel().tolist()}")
    share = given / resamples
    size = f"1 series x {days} days x {resamples} resamples"
    return Row("one bootstrap Sharpe interval", size, seconds, "arch conf_int", other / share, share)


def naive_purge(train: np.ndarray, test: np.ndarray, labels: LabelIntervals, embargo: int) -> np.ndarray:
    begin, end = labels.t0[test], labels.t1[test] + embargo
    return np.array([r for r in train if not ((labels.t0[r] < end) & (begin < labels.t1[r])).any()])


def bench_purge(rows: int, given: int) -> Row:
    generator = np.random.default_rng(2)
    t0 = np.arange(rows, dtype=np.int64) * 60_000
    labels = LabelIntervals(t0, t0 + generator.integers(1, 200, rows) * 60_000)
    test = np.arange(rows // 2, rows // 2 + rows // 10)
    train = np.setdiff1d(np.arange(rows), test)
    embargo = 50 * 60_000
    kept, seconds = timed(lambda: purge(train, test, labels.t0, labels.t1, embargo))
    some = train[:: max(1, len(train) // given)]
    naive, other = timed(lambda: naive_purge(some, test, labels, embargo))
    np.testing.assert_array_equal(np.intersect1d(kept, some), naive)
    share = len(some) / len(train)
    return Row("purge", f"{rows} random intervals", seconds, "row by row in numpy", other / share, share)


def bench_splits(rows: int) -> list[Row]:
    from skfolio.model_selection import CombinatorialPurgedCV, WalkForward

    t0 = np.arange(rows, dtype=np.int64) * 60_000
    labels = LabelIntervals(t0, t0 + 101 * 60_000)
    x = np.zeros((rows, 1))
    result: list[Row] = []
    train, test = rows // 5, rows // 10
    for name, ours, theirs in (
        (
            "combinatorial purged, 15 splits",
            CombinatorialPurged(6, 2, labels, 50 * 60_000),
            CombinatorialPurgedCV(6, 2, purged_size=100, embargo_size=50),
        ),
        (
            "walk forward",
            WalkForwardCV(train, test, labels, embargo_ms=50 * 60_000),
            WalkForward(train_size=train, test_size=test, purged_size=150),
        ),
    ):
        splits, seconds = timed(lambda cv=ours: list(cv.split(x)))
        expected, other = timed(lambda cv=theirs: list(cv.split(x)))
        for (a, b), (c, d) in zip(splits, expected, strict=True):
            np.testing.assert_array_equal(a, c)
            np.testing.assert_array_equal(b, np.concatenate(d) if isinstance(d, list) else d)
        result.append(Row(name, f"{rows} rows", seconds, "skfolio, purging by row count", other, 1.0))
    return result


def bench_spa(candidates: int, days: int, resamples: int, given: int) -> Row:
    from arch.bootstrap import SPA

    returns = market(days, candidates) - 0.0005
    options = {"block_length": 5.0, "studentised": False}
    superior_predictive_ability(returns[:40, :2], n_resamples=5, **options)
    got, seconds = timed(lambda: superior_predictive_ability(returns, n_resamples=resamples, **options))

    def theirs() -> float:
        test = SPA(np.zeros(days), -returns, block_size=5, reps=given, seed=1)
        test.compute()
        return float(test.pvalues["consistent"])

    expected, other = timed(theirs)
    if abs(got.p_consistent - expected) > 5 * math.sqrt(0.25 / given + 0.25 / resamples):
        raise AssertionError(f"p-value {got.p_consistent} is not arch's {expected}")
    size = f"{candidates} candidates x {days} days x {resamples} resamples"
    return Row("superior predictive ability", size, seconds, "arch SPA", other * resamples / given, given / resamples)


def bench_effective(trials: int, days: int) -> Row:
    from scipy.cluster.hierarchy import cut_tree, linkage
    from scipy.spatial.distance import squareform
    from sklearn.metrics import silhouette_score

    generator = np.random.default_rng(3)
    families = max(2, trials // 25)
    base = np.repeat(generator.standard_normal((days, families)), -(-trials // families), axis=1)[:, :trials]
    returns = 0.01 * (base + 0.5 * generator.standard_normal((days, trials)))
    effective_trials(returns[:, :5])
    found, seconds = timed(lambda: effective_trials(returns))
    if found.number != families:
        raise AssertionError(f"{found.number} effective trials where {families} were planted")
    near = np.sqrt((1 - np.clip(np.corrcoef(returns.T), -1, 1)) / 2)
    np.fill_diagonal(near, 0.0)

    def by_sklearn(counts: list[int]) -> None:
        tree = linkage(squareform(near, checks=False), "ward")
        for count, labels in zip(counts, cut_tree(tree, n_clusters=counts).T, strict=True):
            silhouette_score(near, labels, metric="precomputed") if count < trials else None

    counts = list(range(2, trials, max(1, trials // 20)))
    _, other = timed(lambda: by_sklearn(counts))
    share = len(counts) / (trials - 2)
    size = f"{trials} trials x {days} days"
    return Row(
        "effective number of trials", size, seconds, "scikit-learn's silhouettes of each cut", other / share, share
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", action="store_true", help="the last line of the output is one JSON object")
    arguments = parser.parse_args()
    small = arguments.quick
    rows = [
        bench_pbo(50, 400, 8, 20) if small else bench_pbo(500, 2000, 16, 100),
        bench_intervals(200, 500, 200, 200) if small else bench_intervals(10_000, 2000, 1000, 1000),
        bench_one_interval(500, 1000, 300) if small else bench_one_interval(2000, 10_000, 2000),
        bench_purge(50_000, 300) if small else bench_purge(1_000_000, 300),
        *bench_splits(20_000 if small else 1_000_000),
        bench_spa(20, 300, 200, 100) if small else bench_spa(500, 2000, 1000, 100),
        bench_effective(100, 300) if small else bench_effective(1000, 1000),
    ]
    print(f"{'what':34s} {'size':56s} {'here':>9s} {'beside':>10s} {'ratio':>8s}  beside what (share measured)")
    for row in rows:
        print(
            f"{row.what:34s} {row.size:56s} {row.seconds:8.3f}s {row.beside_seconds:9.1f}s {row.ratio:7.1f}x  "
            f"{row.beside} ({row.measured_share:.2%})"
        )
    if arguments.json:
        print(json.dumps({"quick": small, "rows": [{**asdict(r), "ratio": r.ratio} for r in rows]}))


if __name__ == "__main__":
    main()
