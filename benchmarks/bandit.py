"""How fast the bandit learns, how honest its intervals are, and what it is worth on stored forecasts.

    python benchmarks/bandit.py                       regret and coverage
    python benchmarks/bandit.py --archive             also the table of every evaluation stored under MLBOT_HOME
                                                      (made by `mlbot bandit evaluate`)

Writes a plot of the regret curves to benchmarks/results/bandit-regret.png. ``--json`` makes the last line of standard
output one JSON object; ``--quick`` is a smoke run.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlbot_core.decision.bandit import PolicySpec
from mlbot_core.research.bandit_synthetic import BEHAVIOURS, coverage, disjoint_bandit, regret, sizing_bandit

RESULTS = Path(__file__).resolve().parent / "results"
NUMBERS = 6


def policies(features: Literal["shared", "disjoint"], alpha: float) -> dict[str, PolicySpec]:
    return {
        "LinTS": PolicySpec("lints", features, NUMBERS, epsilon=0.0, alpha=alpha, draws=64),
        "LinUCB": PolicySpec("linucb", features, NUMBERS, epsilon=0.0, alpha=alpha),
    }


def regrets(steps: int, seeds: int) -> dict[str, dict[str, np.ndarray]]:
    """Cumulative regret of every policy, float64[seeds, steps], on both kinds of bandits."""
    found: dict[str, dict[str, np.ndarray]] = {}
    kinds: tuple[tuple[str, Any, Literal["shared", "disjoint"]], ...] = (
        ("sizes", sizing_bandit, "shared"),
        ("disjoint arms", disjoint_bandit, "disjoint"),
    )
    for title, make, features in kinds:
        paths: dict[str, list[np.ndarray]] = {}
        for seed in range(seeds):
            # another bandit each time: the answer is not about one lucky draw of its parameters
            for name, path in regret(make(100 + seed), policies(features, 0.5), steps, seed).items():
                paths.setdefault(name, []).append(path)
        found[title] = {name: np.array(rows) for name, rows in paths.items()}
    return found


def plot(found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(12, 4.5))
    for axis, (title, paths) in zip(axes, found.items(), strict=True):
        for name, rows in paths.items():
            mean, error = rows.mean(axis=0), rows.std(axis=0, ddof=1) / np.sqrt(len(rows)) if len(rows) > 1 else 0.0
            x = np.arange(1, rows.shape[1] + 1)
            axis.plot(x, mean, label=name)
            axis.fill_between(x, mean - 2 * error, mean + 2 * error, alpha=0.2)
        axis.set_title(f"{title}: cumulative regret, mean of {len(rows)} bandits with 2 standard errors")
        axis.title.set_fontsize(9)
        axis.set_yscale("log")
        axis.set_xlabel("decisions")
        axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def show_regret(found: dict[str, dict[str, np.ndarray]]) -> list[dict[str, Any]]:
    rows = []
    print(f"{'bandit':14} {'policy':15} {'regret':>9} {'+- 2 se':>8} {'of random':>10} {'second half':>12}")
    for title, paths in found.items():
        worst = paths["random"][:, -1].mean()
        for name, path in sorted(paths.items(), key=lambda item: item[1][:, -1].mean()):
            end = path[:, -1]
            error = 2 * float(end.std(ddof=1)) / np.sqrt(len(end)) if len(end) > 1 else float("nan")
            half = float((path[:, -1] - path[:, path.shape[1] // 2]).mean() / end.mean())
            row = {"bandit": title, "policy": name, "regret": float(end.mean()), "error": error, "second_half": half}
            rows.append(row)
            print(f"{title:14} {name:15} {end.mean():9.1f} {error:8.1f} {end.mean() / worst:10.1%} {half:12.1%}")
    return rows


def show_coverage(repetitions: int, decisions: int) -> list[dict[str, Any]]:
    rows = []
    print(
        f"\n{'log of':20} {'estimator':10} {'stated':>7} {'covered':>8} {'2 se':>8} {'bias':>8} {'width':>7} "
        f"{'eff. n':>7}"
    )
    for behaviour in BEHAVIOURS:
        bandit = sizing_bandit(3, tails=5)
        for c in coverage(bandit, behaviour, decisions=decisions, repetitions=repetitions, levels=(0.8, 0.95)):
            error = 2 * np.sqrt(c.level * (1 - c.level) / c.repetitions)
            inside = abs(c.rate - c.level) <= 2 * error
            rows.append(
                {"log": behaviour, "estimator": c.estimator, "level": c.level, "rate": c.rate, "inside": bool(inside)}
            )
            print(
                f"{behaviour:20} {c.estimator:10} {c.level:7.0%} {c.rate:8.1%} {error:8.1%} {c.bias:+8.4f} "
                f"{c.width:7.3f} {c.effective:7.0f} {'' if inside else 'OUTSIDE 4 se'}",
                flush=True,
            )
    return rows


def show_archive() -> list[dict[str, Any]]:
    from mlbot_core.clock import clock_from_env
    from mlbot_core.config import load_settings
    from mlbot_core.research.bandit_store import stored_evaluations
    from mlbot_core.warehouse import Warehouse

    settings = load_settings()
    with Warehouse(settings.warehouse_path, clock_from_env()).read() as con:
        newest = {row["summary"]["line"]: row["summary"] for row in stored_evaluations(con, {})}
    kept = ("bandit", "fixed 0.25", "fixed 0.5", "fixed 1", "volatility target", "fractional Kelly")
    print(
        f"\n{'line':24} {'n':>4} {'sizes by':18} {'size':>5} {'net':>8} {'Sharpe':>7} {'max DD':>7} "
        f"{'reward [95 %]':>25} {'advantage, simulated':>25} {'advantage, log':>25}"
    )
    for line in sorted(newest):
        summary = newest[line]
        for row in summary["rows"]:
            if row["name"] not in kept:
                continue
            sharpe = row["sharpe"][0]
            print(
                f"{line:24} {summary['judged']:4} {row['name']:18} {row['multiplier']:5.2f} "
                f"{row['total_return']:+8.2%} "
                f"{'n/a' if sharpe is None else format(sharpe, '.2f'):>7} {row['max_drawdown']:7.2%} "
                f"{_interval(row['reward']):>25} {_interval(row['advantage_simulated']):>25} "
                f"{_interval(row['advantage_log']):>25}"
            )
        print(f"{line:24} {summary['verdict']}\n")
    return list(newest.values())


def _interval(values: Any) -> str:
    if values is None or None in values:
        return ""
    return f"{values[0]:+.3f} [{values[1]:+.3f}, {values[2]:+.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--coverage", action="store_true", help="only how often intervals cover the truth")
    parser.add_argument("--archive", action="store_true", help="the stored evaluations under MLBOT_HOME too")
    options = parser.parse_args()
    began = time.perf_counter()
    steps, seeds, repetitions, decisions = (300, 2, 20, 100) if options.quick else (2_000, 20, 1_000, 300)
    document: dict[str, Any] = {}
    if not options.coverage:
        found = regrets(steps, seeds)
        plot(found, RESULTS / "bandit-regret.png")
        document["regret"] = show_regret(found)
    document["coverage"] = show_coverage(repetitions, decisions)
    if options.archive:
        document["archive"] = show_archive()
    print(f"\n{time.perf_counter() - began:.0f} s; the plot of regret is {RESULTS / 'bandit-regret.png'}")
    if options.json:
        print(json.dumps(document))


if __name__ == "__main__":
    main()
