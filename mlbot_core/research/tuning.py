"""``--optimize``: parameters searched by Optuna over purged folds, judged by what trading them would have earned.

Only rows whose outcome was settled before the first test window of the walk forward (less its embargo) are looked at,
so what the walk forward reports afterwards was not chosen by itself. Every trial, pruned ones too, is a row in the
trial ledger with its daily returns.

A study lives in ``<home>/optuna.sqlite`` or, where ``MLBOT_PG_URL`` is set, in the schema ``optuna`` of that database.
It goes on where it was stopped: the sampler is seeded anew for each trial by how many are finished, so a study that
was killed proposes what an undisturbed one would have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from mlbot_core.config import FeesConfig, ModelsConfig
from mlbot_core.decision.costs import costs_from_fees
from mlbot_core.decision.sizing import target_positions
from mlbot_core.errors import MissingDataError, UsageError
from mlbot_core.models.base import TrainingDataError, create_model
from mlbot_core.models.canonical import canonical_json, sha256_hex
from mlbot_core.models.training_data import TrainingSet, TrainRequest
from mlbot_core.models.version import code_of, library_versions
from mlbot_core.targets.weights import sample_weights
from mlbot_core.timeframe import DAY_MS
from mlbot_core.validation.inner_splits import InnerSplit, tuning_split
from mlbot_core.validation.intervals import embargo_of
from mlbot_core.validation.sqlstore import postgres_url
from mlbot_core.validation.trials import DailyReturns, TrialLedger
from mlbot_core.validation.trials_significance import SEARCHED
from mlbot_core.warehouse.locks import FileLock

if TYPE_CHECKING:
    import optuna

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[int, int, float, bool], None]

FILE_NAME: Final = "optuna.sqlite"
_SCHEMA: Final = "optuna"
_LOCK_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Parameters
    ----------
    models
        The configuration with the best parameters in the model type's section.
    params
        Those parameters.
    utility, configured_utility
        Yearly net utility of the best and of the configured parameters on the held-out folds.
    trials
        One row a finished trial: ``number``, ``utility`` (NaN where pruned), ``pruned`` and the parameters.
    study
        Its name in the storage.
    start_ms, end_ms
        Period that was searched on, UTC ms.
    """

    models: ModelsConfig
    params: Mapping[str, Any]
    utility: float
    configured_utility: float
    trials: pd.DataFrame
    study: str
    start_ms: int
    end_ms: int


def tune(
    data: TrainingSet,
    request: TrainRequest,
    models: ModelsConfig,
    fees: FeesConfig,
    ledger: TrialLedger,
    home: Path,
    first_test_ms: int,
    *,
    namespace: str,
    trials: int | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Search the model type's space and return the configuration with the best parameters.

    Parameters
    ----------
    data
        Of the market; only rows settled before the first test window are used.
    first_test_ms
        Where the walk forward's first test window begins, UTC ms.
    namespace
        Of the trial ledger.
    trials
        Instead of ``tuning.trials``.
    progress
        Called with (finished, in all, best utility so far, whether the last was pruned).

    Raises
    ------
    UsageError
        If the model type has no search space.
    MissingDataError
        If fewer than ``tuning.min_days`` lie before the first test window.
    LedgerTamperedError
        If the trial ledger was tampered with.
    LockTimeoutError
        If another process searches in the same home.
    """
    config = models.tuning
    space = config.space.get(request.model_type)
    if not space:
        known = ", ".join(sorted(config.space)) or "none"
        raise UsageError(
            f"model {request.model_type!r} has no search space under tuning.space in config/models.yaml; "
            f"have one: {known}"
        )
    rows = _rows(data, request, models, first_test_ms)
    splits = tuning_split(
        rows, data.t0, data.t1, config.folds, embargo_ms=embargo_of(models.walk_forward.embargo_bars, _tf(request))
    )
    work = _Objective(data, request, models, fees, splits)
    identity = work.identity(rows)
    # other data, code or libraries give other utilities: another study, though not another configuration
    made_of = {
        "partitions": dict(data.partitions),
        "code": code_of(request.model_type),
        "libraries": library_versions(request.model_type),
    }
    name = f"{request.source} {request.partition} {sha256_hex(canonical_json({**identity, **made_of}))[:12]}"
    wanted = trials or config.trials
    default = _current(models, request.model_type, space)

    def objective(trial: optuna.Trial) -> float:
        params = {key: _suggest(trial, key, where) for key, where in space.items()}
        return work(trial, params, ledger, namespace, identity, name)

    with _opened(home, name) as study:
        with FileLock(home / f"{FILE_NAME}.lock", _LOCK_TIMEOUT_S).exclusive():
            # whoever holds the lock is alone: what is running otherwise belongs to a process that was killed
            _abandon_unfinished(study)
            _run(study, wanted, objective, default, config, progress)
        best = study.best_trial
        table = _table(study, space)
    return Tuned(
        _with(models, request.model_type, best.params),
        dict(best.params),
        float(best.value if best.value is not None else np.nan),
        float(table["utility"].iloc[0]),
        table,
        name,
        int(data.ts[rows[0]]),
        int(data.t1[rows].max()),
    )


def _run(
    study: optuna.Study,
    wanted: int,
    objective: Callable[[optuna.Trial], float],
    default: Mapping[str, Any],
    config: Any,
    progress: Progress | None,
) -> None:
    while (done := len(_finished(study))) < wanted:
        study.sampler, study.pruner = _sampler(config.seed + done, config.startup_trials), _pruner(config)
        if done == 0:
            study.enqueue_trial(dict(default))
        study.optimize(objective, n_trials=1)
        if progress is not None:
            last = study.trials[-1]
            progress(done + 1, wanted, study.best_value, last.state.name == "PRUNED")


class _Objective:
    """Fits and trades fold by fold; reports after each, so that a hopeless set is given up early."""

    def __init__(
        self,
        data: TrainingSet,
        request: TrainRequest,
        models: ModelsConfig,
        fees: FeesConfig,
        splits: tuple[InnerSplit, ...],
    ) -> None:
        self._data, self._request, self._models, self._splits = data, request, models, splits
        self._fees = fees
        self._costs = costs_from_fees(fees)

    def identity(self, rows: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Return everything but the parameters that decides a trial's result, plain JSON."""
        models, request = self._models, self._request
        return {
            "stage": SEARCHED,
            "market": str(request.market),
            "source": request.source,
            "model_type": request.model_type,
            "fixed": getattr(models, request.model_type).model_dump(mode="json"),
            "feature_set": self._data.feature_set,
            "targets": models.targets.model_dump(mode="json"),
            "weights": models.weights.model_dump(mode="json"),
            "tuning": models.tuning.model_dump(mode="json", include={"folds", "risk_aversion"}),
            "embargo_bars": models.walk_forward.embargo_bars,
            "fees": self._fees.model_dump(mode="json"),
            "period": [int(self._data.ts[rows[0]]), int(self._data.ts[rows[-1]])],
        }

    def __call__(
        self,
        trial: optuna.Trial,
        params: Mapping[str, Any],
        ledger: TrialLedger,
        namespace: str,
        identity: Mapping[str, Any],
        run_id: str,
    ) -> float:
        import optuna

        models = _with(self._models, self._request.model_type, params)
        traded: list[pd.Series] = []
        pruned = False
        utility = -np.inf
        for number, split in enumerate(self._splits):
            traded.append(self._trade(models, split))
            utility = yearly_utility(pd.concat(traded), self._models.tuning.risk_aversion)
            trial.report(utility, number)
            if number + 1 < len(self._splits) and trial.should_prune():
                pruned = True
                break
        ledger.append(
            namespace,
            {**identity, "params": dict(params)},
            _daily_returns(pd.concat(traded), *identity["period"]),
            data_version=sha256_hex(canonical_json(dict(self._data.partitions))),
            run_id=self._request.run_id,
            info={"study": run_id, "trial": trial.number, "pruned": pruned, "utility": utility},
        )
        if pruned:
            raise optuna.TrialPruned
        return utility

    def _trade(self, models: ModelsConfig, split: InnerSplit) -> pd.Series:
        """Return the daily net returns of a held-out fold at unit exposure, by UTC day."""
        data, request = self._data, self._request
        model = create_model(request.model_type, models, request.threads)
        weight = sample_weights(
            data.t0[split.fit_idx], data.t1[split.fit_idx], request.market.timeframe.ms, models.weights.oldest
        )
        held = split.held_idx
        try:
            model.fit(data.X, data.y, split.fit_idx, weight)
        except TrainingDataError as error:
            raise TrainingDataError(f"tuning {request.partition}: {error}") from error
        said = model.predict(data.X, held)["score"].to_numpy()
        edge = said * data.y["width"].to_numpy()[held]
        position = target_positions(edge, self._costs.round_trip, 1.0)
        return net_daily_returns(
            data.ts[held] + request.market.timeframe.ms,
            position,
            data.y["next_ret"].to_numpy()[held],
            self._costs.side,
        )


def net_daily_returns(
    held_from: npt.NDArray[np.int64], position: FloatArray, next_ret: FloatArray, cost_side: float
) -> pd.Series:
    """Return simple net returns by UTC day of positions held for one bar each.

    Funding, slippage beyond its expected value and the delay of the fill are left out: this ranks parameters, the
    simulator reports.

    Parameters
    ----------
    held_from
        Close of the deciding bar, from which on the position is held, UTC ms.
    position
        Signed fraction of NAV.
    next_ret
        Log return over the bar in which it is held; NaN counts as no move.
    cost_side
        Fee and slippage of each trade, fraction of the traded value; a first entry and a last exit are paid too.
    """
    move = position * np.expm1(np.nan_to_num(next_ret))
    paid = np.abs(np.diff(position, prepend=0.0)) * cost_side
    if len(paid):
        paid[-1] += abs(position[-1]) * cost_side
    day = held_from // DAY_MS
    return pd.Series(np.log1p(move - paid), index=day).groupby(level=0).sum().map(np.expm1)


def yearly_utility(daily: pd.Series, risk_aversion: float) -> float:
    """Return 365 times (mean - risk_aversion / 2 x variance) of daily net returns."""
    values = daily.to_numpy(dtype=np.float64)
    return float(365.0 * (values.mean() - 0.5 * risk_aversion * values.var()))


def _rows(data: TrainingSet, request: TrainRequest, models: ModelsConfig, first_test_ms: int) -> npt.NDArray[np.int64]:
    """Return the rows that may be looked at: settled before the first test window, and not too old."""
    schedule = models.walk_forward.of(request.model_type)
    cutoff = first_test_ms - embargo_of(schedule.embargo_bars, _tf(request))
    settled = (data.t1 >= 0) & (data.t1 <= cutoff) & (data.ts >= first_test_ms - schedule.train_days * DAY_MS)
    rows = np.flatnonzero(settled & data.usable).astype(np.int64)
    if len(rows) and not np.isfinite(data.y["next_ret"].to_numpy(dtype=np.float64)[rows]).any():
        raise MissingDataError(
            f"{request.partition} from {request.source}: the return of the next bar is not stored, so no trade can be "
            "judged; add 1 to targets.horizons in config/models.yaml and run: mlbot features"
        )
    days = 0.0 if len(rows) == 0 else (data.ts[rows[-1]] - data.ts[rows[0]]) / DAY_MS
    if days < models.tuning.min_days:
        raise MissingDataError(
            f"{request.partition} from {request.source}: {days:.0f} days lie before the first test window, parameters "
            f"are searched on at least tuning.min_days {models.tuning.min_days}; give a later --from or backfill more"
        )
    return rows


def _tf(request: TrainRequest) -> Any:
    return request.market.timeframe


def _daily_returns(days: pd.Series, first_ms: int, last_ms: int) -> DailyReturns:
    """Return the whole period's daily returns: days that no finished fold holds are flat."""
    first, last = first_ms // DAY_MS, last_ms // DAY_MS
    every = np.zeros(int(max(last, int(days.index.max())) - first) + 1)
    # a day at the border of two folds is traded in both
    grown = (days + 1.0).groupby(level=0).prod()
    every[grown.index.to_numpy(dtype=np.int64) - first] = grown.to_numpy(dtype=np.float64) - 1.0
    return DailyReturns(int(first) * DAY_MS, every)


def _current(models: ModelsConfig, model_type: str, space: Mapping[str, Any]) -> dict[str, Any]:
    section = getattr(models, model_type)
    missing = [key for key in space if not hasattr(section, key)]
    if missing:
        raise UsageError(f"tuning.space.{model_type} names {', '.join(missing)}, which {model_type} does not have")
    return {key: getattr(section, key) for key in space}


def _with(models: ModelsConfig, model_type: str, params: Mapping[str, Any]) -> ModelsConfig:
    section = getattr(models, model_type)
    chosen = type(section).model_validate({**section.model_dump(), **params})
    return models.model_copy(update={model_type: chosen})


def _suggest(trial: optuna.Trial, key: str, where: Any) -> Any:
    if where.choices:
        return trial.suggest_categorical(key, where.choices)
    if where.whole:
        return trial.suggest_int(key, int(where.low), int(where.high), log=where.log)
    return trial.suggest_float(key, where.low, where.high, log=where.log)


def _sampler(seed: int, startup: int) -> optuna.samplers.BaseSampler:
    import optuna

    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)


def _pruner(config: Any) -> optuna.pruners.BasePruner:
    import optuna

    return optuna.pruners.MedianPruner(n_startup_trials=config.startup_trials, n_warmup_steps=1)


@contextmanager
def _opened(home: Path, name: str) -> Iterator[optuna.Study]:
    """Open the study of that name, new or with all its trials; its connections are closed at the end."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    home.mkdir(parents=True, exist_ok=True)
    given = os.environ.get("MLBOT_PG_URL")
    url, options = f"sqlite:///{home / FILE_NAME}", {}
    if given:
        url = postgres_url(given).render_as_string(hide_password=False)
        _make_schema(url)
        options = {"connect_args": {"options": f"-csearch_path={_SCHEMA}"}}
    storage = optuna.storages.RDBStorage(url, engine_kwargs=options)
    try:
        yield optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _make_schema(url: str) -> None:
    """Make the schema: Optuna's and Dagster's migrations both call their table alembic_version and must not share."""
    import sqlalchemy as sa

    engine = sa.create_engine(url, poolclass=sa.NullPool)
    try:
        with engine.begin() as con:
            con.execute(sa.text(f"CREATE SCHEMA IF NOT EXISTS {_SCHEMA}"))
    finally:
        engine.dispose()


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def _abandon_unfinished(study: optuna.Study) -> None:
    """Give up what a killed process had begun: it is proposed again."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)


def _table(study: optuna.Study, space: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "number": number,
                "utility": np.nan if trial.state.name == "PRUNED" or trial.value is None else trial.value,
                "pruned": trial.state.name == "PRUNED",
                **{key: trial.params.get(key) for key in space},
            }
            for number, trial in enumerate(_finished(study))
        ]
    )
