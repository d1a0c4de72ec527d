"""The null bench: many paths, kept one file a path so that a killed run goes on, and what they say together.

A null passes when, over its paths, no measure's mean lies outside a bootstrap band around zero (0.5 for hit rates) and
no measure's p-values depart from uniform (Kolmogorov-Smirnov). At most ten such checks are made of each null, each at
0.1 %, so that a sound pipeline fails one null with at most 1 % (Bonferroni). The planted signal passes when at least
nine tenths of its paths have an IC above the 99th percentile of the same pipeline's on the same markets without it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.backtest import simulator
from mlbot_core.errors import MissingDataError
from mlbot_core.research import bench_path, bench_skill
from mlbot_core.research.bench_config import NULLS, Kind, NullBenchConfig
from mlbot_core.research.bench_path import PathResult, bench_features, prepare, run_path
from mlbot_core.timeframe import Timeframe
from mlbot_core.validation import intervals, nulls, splits
from mlbot_core.validation.bootstrap import bootstrap_mean_interval
from mlbot_core.validation.trials import DailyReturns, TrialLedger

FloatArray = npt.NDArray[np.float64]

CHECK_LEVEL: Final = 0.001
NULL_PERCENTILE: Final = 99.0
FOUND_SHARE: Final = 0.9
MIN_PATHS: Final = 20
"""With fewer paths nothing is judged: a band from a handful of means is no band."""

MEASURES: Final = ("boundary_ic", "boundary_hits", "ic", "hits", "gross_sharpe")
_NEAR: Final = ("boundary_ic", "boundary_hits")
_CENTRE: Final[Mapping[str, float]] = {"boundary_hits": 0.5, "hits": 0.5}


@dataclass(frozen=True)
class MeasureOutcome:
    """One measure over the paths of one arm.

    Parameters
    ----------
    name
        One of ``MEASURES``.
    mean, low, high
        Mean over paths with its bootstrap band at 1 - ``CHECK_LEVEL``.
    centre
        What it is without skill.
    uniform_p
        Kolmogorov-Smirnov p-value that the paths' p-values are uniform.
    small_share
        Share of the paths with a p-value below 5 %.
    passed
        Whether the band holds the centre and the p-values look uniform.
    """

    name: str
    mean: float
    low: float
    high: float
    centre: float
    uniform_p: float
    small_share: float
    passed: bool


@dataclass(frozen=True)
class ArmOutcome:
    """A kind of path, purged or not.

    Parameters
    ----------
    kind, purge, paths
        Which arm.
    measures
        See :func:`measures_of`.
    net_sharpe
        Mean after costs.
    passed
        Whether it shows what it should; None where too few paths were run to say.
    words
        The verdict for people.
    """

    kind: Kind
    purge: bool
    paths: int
    measures: tuple[MeasureOutcome, ...]
    net_sharpe: float
    passed: bool | None
    words: str

    @property
    def name(self) -> str:
        """Return for instance ``garch, purged``."""
        return f"{self.kind}, {'purged' if self.purge else 'NOT purged'}"


def bench_identity(config: NullBenchConfig, kind: Kind) -> str:
    """Return the name of the folder with the results of this kind, configuration and code."""
    return config.identity(kind, simulator, splits, intervals, nulls, bench_path, bench_skill)


def run_arm(
    config: NullBenchConfig,
    kind: Kind,
    purge: bool,
    paths: int,
    folder: Path,
    *,
    recorded: pd.DataFrame | None = None,
) -> Iterator[tuple[int, PathResult | None]]:
    """Run the paths of an arm that are not there yet and keep each at once; yield (path, what is new or None).

    Parameters
    ----------
    folder
        Of this bench; the arm has a folder in it, with one file a path.
    recorded
        Bars to bootstrap from.

    Raises
    ------
    MissingDataError
        If bars are to be bootstrapped and none are recorded.
    """
    features = bench_features(config)
    arm = _arm_folder(folder, kind, purge)
    arm.mkdir(parents=True, exist_ok=True)
    for path in range(paths):
        file = arm / f"{path:04d}.json"
        result = None
        if not file.exists():
            prepared = prepare(config, kind, path, features, recorded)
            result = run_path(config, kind, purge, path, features, prepared)
            _write(file, result)
        yield path, result


def count(ledger: TrialLedger, identity: str, kind: Kind, purge: bool, path: int, result: PathResult) -> None:
    """Record a path as a trial of the namespace ``null``: what passes for skill among so many must not."""
    ledger.append(
        "null",
        {"bench": identity, "kind": kind, "purge": purge, "path": path},
        DailyReturns(result.first_day_ms, result.net_daily),
        data_version=f"{identity}:{kind}:{path}",
        run_id=f"null-bench {identity}",
    )


def judge_arm(kind: Kind, purge: bool, folder: Path, paths: int) -> ArmOutcome:
    """Return what the kept paths of an arm say; for ``planted`` the paths of ``signal-null`` are read too.

    Raises
    ------
    MissingDataError
        If none were run.
    """
    found = _read(_arm_folder(folder, kind, purge), paths)
    measures = tuple(_outcome(name, found) for name in measures_of(kind))
    net = _mean([record["net_sharpe"] for record in found])
    if len(found) < MIN_PATHS:
        words = f"not judged: {len(found)} paths, at least {MIN_PATHS} are needed"
        return ArmOutcome(kind, purge, len(found), measures, net, None, words)
    if kind == "planted":
        null = np.array([_value(r, "ic") for r in _read(_arm_folder(folder, "signal-null", True), paths)])
        bound = float(np.percentile(null[np.isfinite(null)], NULL_PERCENTILE))
        mine = np.array([_value(record, "ic") for record in found])
        share = float((mine > bound).mean())
        signal = _mean([record["planted_ic"] for record in found])
        words = (
            f"{int((mine > bound).sum())} of {len(mine)} paths have an IC above {bound:.3f}, the null's 99th "
            f"percentile (the planted column's own IC: {signal:.3f})"
        )
        return ArmOutcome(kind, purge, len(found), measures, net, share >= FOUND_SHARE, words)
    failing = [measure.name.replace("_", " ") for measure in measures if not measure.passed]
    words = f"skill where none is: {', '.join(failing)}" if failing else "no skill"
    return ArmOutcome(kind, purge, len(found), measures, net, not failing, words)


def recorded_bars(archive_dir: Path, timeframe: Timeframe) -> pd.DataFrame | None:
    """Return recorded hourly bars put together to a longer timeframe; None where there is no record.

    Incomplete bars at both ends are left out.
    """
    file = archive_dir / "btcusdt_perp_1h.parquet"
    if not file.exists():
        return None
    hours = pd.read_parquet(file, columns=["ts", "open", "high", "low", "close"])
    opens = hours["ts"].dt.as_unit("ms").astype("int64")
    groups = hours.groupby((opens // timeframe.ms * timeframe.ms).rename("bar"))
    bars = groups.agg({"open": "first", "high": "max", "low": "min", "close": "last"})
    whole = groups.size() == timeframe.ms // 3_600_000
    return bars[whole].rename_axis("ts").reset_index()


def summary(outcomes: Iterable[ArmOutcome]) -> list[dict[str, Any]]:
    """Return the outcomes as plain values."""
    return [asdict(outcome) | {"name": outcome.name} for outcome in outcomes]


def measures_of(kind: Kind) -> tuple[str, ...]:
    """Return what is judged of a kind: labels of one bar, as the planted signal has, know no boundary."""
    return MEASURES if kind in NULLS else tuple(name for name in MEASURES if name not in _NEAR)


def kinds_for(purge: bool, archive: bool) -> tuple[Kind, ...]:
    """Return what is run: the nulls (bootstrap only with a record); with purging the signal and its null as well."""
    kinds = tuple(kind for kind in NULLS if kind != "bootstrap" or archive)
    return (*kinds, "signal-null", "planted") if purge else kinds


def _outcome(name: str, records: Sequence[Mapping[str, Any]]) -> MeasureOutcome:
    from scipy.stats import kstest

    values = np.array([_value(record, name) for record in records])
    p_values = np.array([record["skill"][name]["p"] for record in records], dtype=np.float64)
    values, p_values = values[np.isfinite(values)], p_values[np.isfinite(p_values)]
    centre = _CENTRE.get(name, 0.0)
    if len(values) < 2 or len(p_values) == 0:
        return MeasureOutcome(name, _mean(values), math.nan, math.nan, centre, math.nan, math.nan, False)
    # paths are independent: blocks of one
    band = bootstrap_mean_interval(values, level=1.0 - CHECK_LEVEL, block_length=1.0, seed=1)
    uniform = float(kstest(p_values, "uniform").pvalue)
    passed = band.low <= centre <= band.high and uniform >= CHECK_LEVEL
    small = float((p_values < 0.05).mean())
    return MeasureOutcome(name, band.value, band.low, band.high, centre, uniform, small, passed)


def _value(record: Mapping[str, Any], name: str) -> float:
    value = record["skill"][name]["value"]
    return math.nan if value is None else float(value)


def _mean(values: Iterable[float | None]) -> float:
    known = [float(v) for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(known)) if known else math.nan


def _arm_folder(folder: Path, kind: Kind, purge: bool) -> Path:
    return folder / f"{kind}-{'purged' if purge else 'unpurged'}"


def _write(file: Path, result: PathResult) -> None:
    """Keep a path whole or not at all; what was killed half-way is made again."""
    content = asdict(result) | {"net_daily": result.net_daily.tolist()}
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".path-", suffix=".json")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(_plain(content), stream, allow_nan=False)
    Path(temporary).replace(file)


def _read(arm: Path, paths: int) -> list[dict[str, Any]]:
    files = [file for path in range(paths) if (file := arm / f"{path:04d}.json").exists()]
    if not files:
        raise MissingDataError(f"no paths of {arm.name} were run; run: mlbot null-bench")
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


def _plain(value: Any) -> Any:
    """Return the value with what is not finite as None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
