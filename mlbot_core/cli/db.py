"""``mlbot db``: look after the store. Everything here reads a copy or swaps whole files, so nobody is held up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlbot_core.cli import output
from mlbot_core.clock import clock_from_env, format_utc, parse_utc_ms
from mlbot_core.config import load_settings
from mlbot_core.errors import UsageError

if TYPE_CHECKING:
    from mlbot_core.warehouse import Warehouse
    from mlbot_core.warehouse.snapshots import Snapshot

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after the store: backup, checks, gaps.")

Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
Source = Annotated[str | None, typer.Option("--source", "-s", help="Only this source.")]
Series = Annotated[str | None, typer.Option("--series", help="Only this series.")]

_MIB = 1024**2


def _store() -> Warehouse:
    from mlbot_core.warehouse import Warehouse

    return Warehouse(load_settings().warehouse_path, clock_from_env())


@app.command("export")
def export(folder: Annotated[Path, typer.Argument(help="A new folder.")], as_json: Json = False) -> None:
    """Write every table as Parquet, with a manifest of row counts and hashes."""
    from mlbot_core.warehouse.backup import export_store

    made = export_store(_store(), folder.expanduser().resolve())
    if as_json:
        output.emit_json({"folder": str(made.folder), "tables": made.tables, "rows": made.rows, "bytes": made.bytes})
        return
    size = made.bytes / _MIB
    output.console().print(f"{made.tables} tables, {made.rows:,} rows, {size:.1f} MiB in {made.folder}", soft_wrap=True)


@app.command("import")
def import_(folder: Annotated[Path, typer.Argument(help="What an export wrote.")], as_json: Json = False) -> None:
    """Load an export: whole into an empty home, merged into one that holds data. Doing it twice changes nothing."""
    from mlbot_core.warehouse.backup import import_store

    source = folder.expanduser().resolve()
    if not source.is_dir():
        raise UsageError(f"{source} is no folder; give one that `mlbot db export` or a backup wrote")
    done = import_store(_store(), source)
    if as_json:
        output.emit_json(
            {"merged": done.merged, "added": done.added, "kept": list(done.kept), "unchecked": list(done.unchecked)}
        )
        return
    console = output.console()
    rows = [[table, f"{count:,}"] for table, count in sorted(done.added.items())]
    console.print(output.table("Merged" if done.merged else "Loaded", ("table", "rows"), rows, right=("rows",)))
    if done.kept:
        console.print(f"left as they were here, make them again: {', '.join(done.kept)}", soft_wrap=True)
    if done.unchecked:
        console.print(
            f"{len(done.unchecked)} raw months are a mixture now and have to be materialized again (mlbot backfill): "
            f"{', '.join(done.unchecked[:3])}",
            soft_wrap=True,
        )


@app.command()
def check(as_json: Json = False) -> None:
    """Look for what must not be: damage, doubled versions, wrong times, stale verdicts. Exit status 1 if found."""
    from mlbot_core.warehouse.integrity import check_store

    found = check_store(_store())
    if as_json:
        output.emit_json(
            [
                {"rule": one.rule, "looked_at": one.looked_at, "passed": one.passed, "broken": list(one.broken)}
                for one in found
            ]
        )
    else:
        rows = [
            [one.rule, f"{one.looked_at:,}", "ok" if one.passed else "BROKEN", "; ".join(one.broken)] for one in found
        ]
        columns = ("rule", "looked at", "state", "what breaks it")
        output.console().print(output.table("mlbot db check", columns, rows, right=("looked at",)))
    if not all(one.passed for one in found):
        raise typer.Exit(1)


@app.command()
def compact(as_json: Json = False) -> None:
    """Rewrite the file without the space that replaced rows left; verified, then swapped in one step."""
    from mlbot_core.warehouse.compact import compact as rewrite

    done = rewrite(_store())
    if as_json:
        output.emit_json(dict(done.__dict__))
        return
    output.console().print(
        f"{done.before / _MIB:.1f} MiB became {done.after / _MIB:.1f} MiB; {done.tables} tables, {done.rows:,} rows"
    )


@app.command()
def gaps(source: Source = None, series: Series = None, as_json: Json = False) -> None:
    """List the bars that are missing now, and why."""
    from mlbot_core.warehouse.gaps import open_gaps

    with _store().read() as con:
        found = open_gaps(con, source=source, series=series)
    if as_json:
        output.emit_json(
            [
                {
                    "source": gap.source, "market": f"{gap.symbol}-{gap.timeframe}", "series": gap.series,
                    "from": format_utc(gap.from_ts), "to": format_utc(gap.to_ts), "bars": gap.bars,
                    "cause": gap.cause, "may_be_filled": gap.fillable, "found_at": format_utc(gap.found_at),
                }
                for gap in found
            ]
        )  # fmt: skip
        return
    rows = [
        [
            gap.source, f"{gap.symbol}-{gap.timeframe}", gap.series, format_utc(gap.from_ts), format_utc(gap.to_ts),
            f"{gap.bars:,}", gap.cause, "yes" if gap.fillable else "no",
        ]
        for gap in found
    ]  # fmt: skip
    columns = ("source", "market", "series", "first bar", "last bar", "bars", "cause", "may be filled")
    output.console().print(output.table("Open gaps", columns, rows, right=("bars",)))


@app.command()
def restatements(series: Series = None, as_json: Json = False) -> None:
    """Report what sources changed after they had served it: how many bars, how far back, by how much, when."""
    from mlbot_core.warehouse.restatements import restatements as report

    with _store().copied() as con:
        found = report(con, series)
    if as_json:
        output.emit_json([one.as_json() for one in found])
        return
    rows = []
    for one in found:
        plain = one.as_json()
        sizes = ["" if size is None else f"{size:.3%}" for size in one.change.values()]
        rows.append(
            [
                one.source, f"{one.symbol}-{one.timeframe}", one.series, f"{one.restated_bars:,}", f"{one.share:.1%}",
                f"{plain['greatest_age_hours']:,.0f}", sizes[0], sizes[2], plain["last_seen"],
                ", ".join(f"{day} ({count:,})" for day, count in one.waves[:2]),
            ]
        )  # fmt: skip
    columns = (
        "source", "market", "series", "bars", "share", "hours back", "change p50", "p99", "last seen", "largest waves",
    )  # fmt: skip
    output.console().print(output.table("Restated bars", columns, rows, right=columns[3:8]))


@app.command()
def snapshot(
    name: Annotated[str, typer.Argument(help="A plain name, like 2025-06-paper.")],
    at: Annotated[str | None, typer.Option("--at", help="Observed by this instant, UTC; default: now.")] = None,
    as_json: Json = False,
) -> None:
    """Name the dataset as it was observed by an instant; reads can be held to it."""
    from mlbot_core.warehouse.snapshots import create_snapshot

    try:
        instant = None if at is None else parse_utc_ms(at)
    except ValueError as error:
        raise UsageError(f"--at {at!r} is no instant; write it like 2025-06-30 or 2025-06-30T12:00:00Z") from error
    made = create_snapshot(_store(), name, instant)
    if as_json:
        output.emit_json(_snapshot_row(made))
        return
    output.console().print(
        f"snapshot {made.name}: {made.rows:,} versions observed by {format_utc(made.snapshot_ms)}, "
        f"content {made.content_hash}"
    )


@app.command()
def snapshots(as_json: Json = False) -> None:
    """List the named snapshots."""
    from mlbot_core.warehouse.snapshots import snapshots as stored_snapshots

    with _store().read() as con:
        found = [_snapshot_row(one) for one in stored_snapshots(con)]
    if as_json:
        output.emit_json(found)
        return
    columns = ("name", "observed_by", "created_at", "rows", "content_hash")
    rows = [[row[column] for column in columns] for row in found]
    output.console().print(output.table("Snapshots", columns, rows, right=("rows",)))


@app.command()
def watches(as_json: Json = False) -> None:
    """List the series that are watched live, and since when."""
    from mlbot_core.warehouse.watches import all_watches

    with _store().read() as con:
        found = all_watches(con)
    rows = [[w.source, f"{w.symbol}-{w.timeframe}", w.series, format_utc(w.since_ms)] for w in found]
    columns = ("source", "market", "series", "since")
    if as_json:
        output.emit_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    output.console().print(output.table("Watched live", columns, rows))


def _snapshot_row(made: Snapshot) -> dict[str, object]:
    return {
        "name": made.name,
        "observed_by": format_utc(made.snapshot_ms),
        "created_at": format_utc(made.created_at),
        "rows": made.rows,
        "content_hash": made.content_hash,
    }
