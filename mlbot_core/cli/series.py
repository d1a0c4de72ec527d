"""``mlbot series``: the catalogue of market data, and a look at what a source really serves of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mlbot_core.cli import output
from mlbot_core.clock import Clock, clock_from_env, format_utc
from mlbot_core.config import Settings, load_settings
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, Market

if TYPE_CHECKING:
    from mlbot_core.market import SeriesBatch, SeriesSpec
    from mlbot_core.sources import Source

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="The market data series: what there is, where it comes from, in which unit.",
)

_THREADS: Final = 4


@app.command("list")
def list_series(
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
) -> None:
    """Show every series of the catalogue: columns and units, endpoint, plan, and the sources that serve it."""
    from mlbot_core.market import CATALOGUE

    rows = [describe(spec) for spec in CATALOGUE.values()]
    if as_json:
        output.emit_json(rows)
        return
    console = output.console()
    columns = ("series", "values (unit)", "bars", "settles", "plan", "sources", "endpoint")
    cells = [
        [
            row["name"],
            _values(row["columns"]),
            row["native_timeframe"] or "any",
            _settles(row),
            row["plan"] or "",
            ", ".join(row["sources"]),
            row["endpoint"] or "",
        ]
        for row in rows
    ]
    console.print(output.table(f"{len(rows)} series", columns, cells))
    for row in rows:
        if row["caveat"]:
            console.print(f"{row['name']}: {row['caveat']}", markup=False)
    console.print("details, conversions and parameters: mlbot series list --json")


@app.command("fetch")
def fetch_series(
    names: Annotated[list[str] | None, typer.Argument(help="Series; all that the source serves if left out.")] = None,
    interval: Annotated[str, typer.Option("--interval", "-i", help="Timeframe of the market.")] = "2h",
    symbol: Annotated[str, typer.Option("--symbol", help="Coin.")] = "BTC",
    source: Annotated[str | None, typer.Option("--source", "-s", help="Source; default: as configured.")] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=10_000, help="How far back to ask.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
) -> None:
    """Ask a source for series and say what it served: rows, range, gaps with their causes, notes. Stores nothing."""
    from mlbot_core.sources import fetch_many

    settings, clock = load_settings(), clock_from_env()
    market = Market.parse(f"{symbol}-{interval}")
    with _opened(source or settings.intervals.source, settings, clock) as opened:
        wanted, refused = _servable(opened, names, market)
        now = clock.now_ms()
        with _progress(to_stderr=as_json) as bar:
            task = bar.add_task(f"{opened.name} {market}", total=len(wanted))
            batches = fetch_many(
                opened,
                wanted,
                market,
                now - days * DAY_MS,
                now,
                threads=_THREADS,
                progress=lambda name, _batch: bar.update(task, advance=1, description=f"{opened.name} {market} {name}"),
            )
    rows = [outcome(batch) for batch in batches.values()]
    if as_json:
        output.emit_json({"source": opened.name, "market": str(market), "served": rows, "not_served": refused})
        return
    console = output.console()
    cells = [
        [row["series"], row["timeframe"], row["rows"], row["first"], row["last"], row["missing"], _remarks(row)]
        for row in rows
    ]
    columns = ("series", "bars", "rows", "first", "last", "missing", "gaps and notes")
    console.print(output.table(f"{opened.name} {market}, {days} days", columns, cells, right=("rows", "missing")))
    for name, why in refused.items():
        console.print(f"{name}: not served: {why}", markup=False)


def describe(spec: SeriesSpec) -> dict[str, Any]:
    """Return a catalogue entry as plain values: what `mlbot series list --json` prints."""
    from mlbot_core.sources.offers import offered

    return {
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "columns": [
            {
                "name": col.name,
                "unit": col.unit,
                "field": col.field,
                "scale": col.scale,
                "resample": col.resample,
                "sign": col.positive,
                "limit": col.limit,
            }
            for col in spec.columns
        ],
        "endpoint": spec.endpoint,
        "params": dict(spec.params),
        "plan": spec.plan if spec.endpoint else None,
        "symbols": None if spec.symbols is None else list(spec.symbols),
        "shape": spec.shape,
        "time_field": spec.time_field,
        "time_unit": spec.time_unit,
        "native_timeframe": None if spec.native is None else str(spec.native),
        "point_sample": spec.point_sample,
        "sparse": spec.sparse,
        "publication_lag_ms": spec.publication_lag_ms,
        "unsettled_rows": spec.unsettled_rows,
        "caveat": spec.caveat,
        "sources": [name for name, series in offered().items() if spec.name in series],
    }


def outcome(batch: SeriesBatch) -> dict[str, Any]:
    """Return what a batch holds as plain values."""
    from mlbot_core.market import series_spec
    from mlbot_core.market.batch import column

    ts = column(batch.table, "ts")
    spec = series_spec(batch.series)
    bars = [len(spec.expected_opens(gap.timeframe, gap.from_ts, gap.to_ts + 1)) for gap in batch.gaps]
    gaps = [
        {"from": format_utc(gap.from_ts), "to": format_utc(gap.to_ts), "bars": count, "cause": gap.cause}
        for gap, count in zip(batch.gaps, bars, strict=True)
    ]
    return {
        "series": batch.series,
        "timeframe": str(batch.timeframe),
        "rows": batch.rows,
        "first": format_utc(int(ts[0])) if len(ts) else None,
        "last": format_utc(int(ts[-1])) if len(ts) else None,
        "missing": sum(bars),
        "gaps": gaps,
        "notes": list(batch.notes),
    }


def _servable(source: Source, names: Sequence[str] | None, market: Market) -> tuple[list[str], dict[str, str]]:
    """Split the wanted series into served ones and {name: why not}; one that was named must be served."""
    from mlbot_core.market import CATALOGUE, series_spec

    refused: dict[str, str] = {}
    wanted = []
    for name in names or CATALOGUE:
        series_spec(name)
        if why := source.why_not(name, market):
            if names:
                raise UsageError(f"{name} {market}: {why}; see mlbot series list")
            refused[name] = why
        else:
            wanted.append(name)
    if not wanted:
        raise UsageError(f"{source.name} serves no series for {market}; see mlbot series list")
    return wanted, refused


@contextmanager
def _opened(name: str, settings: Settings, clock: Clock) -> Iterator[Source]:
    """Open a source; for the emulator, a server of this process where none is running already."""
    from mlbot_core.sources import open_source

    if name != "emulator" or settings.emulator_url:
        with open_source(name, settings, clock) as source:
            yield source
        return
    from mlbot_core.emulator.launch import serve

    with serve(settings.intervals.emulator, clock) as url, open_source(name, settings, clock, base_url=url) as source:
        yield source


def _progress(*, to_stderr: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=output.console(to_stderr=to_stderr))


def _values(columns: Sequence[dict[str, Any]]) -> str:
    """Return the columns by unit: ``open, high, low, close (USD)``."""
    by_unit: dict[str, list[str]] = {}
    for col in columns:
        by_unit.setdefault(str(col["unit"]), []).append(str(col["name"]))
    return "; ".join(f"{', '.join(names)} ({unit})" for unit, names in by_unit.items())


def _settles(row: dict[str, Any]) -> str:
    """Return when a bar is taken."""
    if row["publication_lag_ms"]:
        return f"{row['publication_lag_ms'] / 3_600_000:g} h after its close"
    late = row["unsettled_rows"] - 1
    return "at its close" if late <= 0 else f"{late} bar later"


def _remarks(row: dict[str, Any]) -> str:
    causes = dict.fromkeys(str(gap["cause"]) for gap in row["gaps"])
    return "; ".join([*causes, *row["notes"]])
