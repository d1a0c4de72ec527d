"""From what a person typed to markets, months and planned runs. Pure; every mistake is a UsageError."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mlbot_core.clock import Clock, parse_utc_ms
from mlbot_core.config import Settings
from mlbot_core.config.models import BASE_MODELS, META_MODEL, MODEL_NAMES
from mlbot_core.config.settings import SOURCE_NAMES
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, Market, Month, Timeframe

# how far back a first pull from the real API goes: every plan serves at least this much at 4h
_COINGLASS_DAYS = 180


@dataclass(frozen=True)
class Run:
    """One run to launch: a job, or some of its assets, over a partition or an unbroken range of partitions."""

    job: str
    title: str
    first: str
    last: str
    source: str | None = None
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    assets: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain values for the launching process."""
        return asdict(self)


def source_name(settings: Settings, asked: str | None) -> str:
    """Return the asked source, or the configured one.

    Raises
    ------
    UsageError
        If it is unknown.
    """
    name = asked or settings.intervals.source
    if name not in SOURCE_NAMES:
        raise UsageError(f"source {name!r} is unknown; choose one of {', '.join(SOURCE_NAMES)}")
    return name


def markets(settings: Settings, clock: Clock, source: str, symbol: str, intervals: Sequence[str]) -> list[Market]:
    """Return the asked markets; without intervals all configured ones that the source can serve.

    Raises
    ------
    UsageError
        If an interval is malformed, not configured, or not served by the source.
    ConfigError
        If the source needs a key that is not there.
    """
    from mlbot_core.sources import open_source

    known = [str(tf) for tf in settings.intervals.timeframes]
    if symbol.upper() not in settings.intervals.symbols:
        raise UsageError(
            f"symbol {symbol!r} is not configured; choose one of {', '.join(settings.intervals.symbols)} "
            "or add it to config/intervals.yaml"
        )
    for text in intervals:
        timeframe = Timeframe.parse(text)
        if timeframe not in settings.intervals.timeframes:
            raise UsageError(f"interval {text!r} is not configured; choose one of {', '.join(known)}")
    asked = [Market(symbol.upper(), Timeframe.parse(text)) for text in (intervals or known)]
    if source in ("emulator", "coinglass"):
        # both serve every configured interval (2h by resampling); opening one tells whether a key is missing
        with open_source(source, settings, clock, base_url="http://127.0.0.1:9"):
            return asked
    found: list[Market] = []
    with open_source(source, settings, clock) as opened:
        for market in asked:
            if opened.served("price", market) is not None:
                found.append(market)
            elif intervals:
                raise UsageError(f"{source} does not serve {market}: {opened.why_not('price', market)}")
    if not found:
        raise UsageError(f"{source} serves none of the configured intervals {', '.join(known)}")
    return found


def instant(text: str | None, option: str) -> int | None:
    """Return UTC ms of an ISO date, None for none.

    Raises
    ------
    UsageError
        If it is not a date.
    """
    if text is None:
        return None
    try:
        return parse_utc_ms(text)
    except ValueError:
        raise UsageError(f"{option} {text!r} is not a date; write it like 2024-03-01") from None


def require_period(start: str | None, end: str | None) -> None:
    """Refuse a period that is malformed or empty.

    Raises
    ------
    UsageError
        If a date is none, or the end does not come after the start.
    """
    first, last = instant(start, "--from"), instant(end, "--to")
    if first is not None and last is not None and first >= last:
        raise UsageError(f"the period from {start} to {end} is empty; give a --to after --from")


def months(settings: Settings, clock: Clock, source: str, start: str | None, end: str | None) -> list[Month]:
    """Return the months from ``start`` to ``end`` (inclusive of the month of the last instant before ``end``).

    Without a start: the emulator's first month, the beginning of the partitions, or for the real API the last 180
    days. Without an end: now, or where a record ends.

    Raises
    ------
    UsageError
        If a date is malformed, the period is empty, or lies before the first partition.
    """
    first, last = instant(start, "--from"), instant(end, "--to")
    record_end = _record_end(settings, clock, source)
    stop = last if last is not None else min(clock.now_ms(), record_end)
    if first is None:
        first = _default_start(settings, source, stop)
    if first >= stop:
        raise UsageError(f"the period from {start or 'the default start'} to {end or 'now'} is empty")
    if stop > clock.now_ms() + 31 * DAY_MS:
        raise UsageError(f"--to {end!r} lies in the future")
    if first < settings.intervals.history_start_ms:
        raise UsageError(
            f"--from {start!r} lies before the first partition {settings.intervals.history_start}; "
            "change history_start in config/intervals.yaml to go further back"
        )
    return Month.span(first, stop)


def _default_start(settings: Settings, source: str, stop_ms: int) -> int:
    from mlbot_core.sources import open_source

    if source == "emulator":
        return max(settings.intervals.emulator.start_ms, settings.intervals.history_start_ms)
    if source == "coinglass":
        return max(stop_ms - _COINGLASS_DAYS * DAY_MS, settings.intervals.history_start_ms)
    with open_source(source, settings, _Never()) as opened:
        market = next(m for m in settings.intervals.markets if opened.served("price", m) is not None)
        served = opened.served("price", market)
    earliest = served.earliest_ms if served is not None and served.earliest_ms is not None else 0
    return max(earliest, settings.intervals.history_start_ms)


def _record_end(settings: Settings, clock: Clock, source: str) -> int:
    from mlbot_core.sources import open_source

    if source in ("emulator", "coinglass"):
        return clock.now_ms()
    with open_source(source, settings, clock) as opened:
        ends = [s.latest_ms for m in settings.intervals.markets if (s := opened.served("price", m)) is not None]
    known = [end for end in ends if end is not None]
    return max(known) if known else clock.now_ms()


class _Never:
    """A clock for questions that no time enters."""

    def now_ms(self) -> int:
        raise AssertionError("asking what a record holds must not need the time")

    def sleep(self, seconds: float) -> None:
        raise AssertionError(f"nobody waits {seconds} s here")


def models_of(settings: Settings, chosen: Sequence[Market], asked: Sequence[str] | None) -> list[tuple[Market, str]]:
    """Return markets and model types, in the order in which they are trained.

    Parameters
    ----------
    asked
        Model types; ``all`` for every one, where it is trained by default; none for the first.

    Raises
    ------
    UsageError
        If one is unknown.
    """
    names = asked or [BASE_MODELS[0]]
    unknown = [name for name in names if name not in (*MODEL_NAMES, "all")]
    if unknown:
        raise UsageError(f"model {unknown[0]!r} is unknown; choose one of {', '.join(MODEL_NAMES)}, or all")
    schedules = settings.models.walk_forward.models

    def wanted(market: Market, name: str) -> bool:
        only = schedules[name].timeframes if name in schedules else []
        return name in names or ("all" in names and (not only or str(market.timeframe) in only))

    return [(market, name) for market in chosen for name in MODEL_NAMES if wanted(market, name)]


def raw_series(settings: Settings, asked: str) -> tuple[str, ...]:
    """Return the series to pull, in the catalogue's order.

    Parameters
    ----------
    asked
        ``needed`` (by the configured feature set, the targets and the backtest), ``all``, or names with commas.

    Raises
    ------
    UsageError
        If a name is not in the catalogue.
    """
    from mlbot_core.market import CATALOGUE, CORE_SERIES, series_spec

    if asked == "all":
        return tuple(CATALOGUE)
    if asked == "needed":
        # the features bring numba with them: only a command that needs them waits for that
        from mlbot_core.features.inputs import series_needed
        from mlbot_core.features.sets import configured_set

        wanted = {*CORE_SERIES, *series_needed(configured_set(settings.models.features))}
    else:
        wanted = {series_spec(name.strip()).name for name in asked.split(",")}
    return tuple(name for name in CATALOGUE if name in wanted)


def pull_runs(
    settings: Settings,
    chosen: Sequence[Market],
    over: Sequence[Month],
    source: str,
    series: Sequence[str],
    *,
    derive: bool,
    again: bool,
) -> list[Run]:
    """Return one run a market that pulls series over all months, and derives features and targets if wanted.

    Parameters
    ----------
    again
        Read months again that are stored in full; otherwise only what is missing is asked for.
    """
    raws = [f"raw/{name}" for name in series]
    derived = [f"features/{settings.models.features.set}", "targets/labels"] if derive else []
    config = {} if again else {f"raw__{name}": {"skip_complete": True} for name in series}
    return [
        dataclasses.replace(run, assets=(*raws, *derived), config=config)
        for run in data_runs("pull", chosen, over, source)
    ]


def data_runs(job: str, chosen: Sequence[Market], over: Sequence[Month], source: str) -> list[Run]:
    """Return one run a market over all months."""
    return [
        Run(job, f"{market} {over[0]} to {over[-1]}", f"{market}|{over[0].key}", f"{market}|{over[-1].key}", source)
        for market in chosen
    ]


def model_runs(job: str, models: Sequence[tuple[Market, str]], source: str) -> list[Run]:
    """Return one run a market and model type."""
    return [
        Run(job, f"{job} {market} {model}", f"{market}|{model}", f"{market}|{model}", source)
        for market, model in models
    ]


def search_of(settings: Settings, asked: Sequence[str] | None, trials: int | None) -> dict[str, dict[str, Any]]:
    """Return what ``--optimize`` asks of each model type that has a search space.

    Parameters
    ----------
    asked
        Model types as typed; one that was named and has no space is a mistake, among ``all`` it is trained as it is.
    trials
        Parameter sets to try, None for the configured number.

    Raises
    ------
    UsageError
        If a named model type cannot be tuned.
    """
    space = settings.models.tuning.space
    without = [name for name in asked or [] if name != "all" and name not in space]
    if without:
        raise UsageError(f"model {without[0]!r} cannot be optimized; these can: {', '.join(sorted(space))}")
    wanted: dict[str, Any] = {"optimize": True} | ({} if trials is None else {"trials": trials})
    return {name: wanted for name in space}


def training_phases(
    models: Sequence[tuple[Market, str]],
    source: str,
    period: Mapping[str, str],
    search: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[list[Run]]:
    """Return the runs that train, in phases: the meta-model stacks what all markets have, so it comes after them all.

    Parameters
    ----------
    models
        Of :func:`models_of`.
    period
        ``start`` and ``end`` of the test period, as far as they are asked for.
    search
        ``optimize`` and ``trials``, where parameters are searched first; by model type, those without are trained as
        configured.
    """
    first = model_runs("train", [pair for pair in models if pair[1] != META_MODEL], source)
    second = model_runs("stack", [pair for pair in models if pair[1] == META_MODEL], source)
    asked = search or {}
    trained = [
        dataclasses.replace(run, config={"models__forecasts": {**period, **asked.get(run.first.partition("|")[2], {})}})
        for run in first
    ]
    stacked = [dataclasses.replace(run, config={"models__meta": dict(period)}) for run in second]
    return [runs for runs in (trained, stacked) if runs]
