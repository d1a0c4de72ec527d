"""``mlbot null-bench`` and ``mlbot trials``: is the pipeline honest, and what was tried."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mlbot_core.cli import output
from mlbot_core.clock import Clock, clock_from_env, format_utc
from mlbot_core.config import Settings, load_settings
from mlbot_core.errors import UsageError
from mlbot_core.validation.trials_chain import NAMESPACES, Head

if TYPE_CHECKING:
    from mlbot_core.validation.trials import TrialLedger

trials = typer.Typer(no_args_is_help=True, help="The ledger of everything that was ever tried.")

Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, progress to standard error.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help=f"One of {', '.join(NAMESPACES)}.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this module to the application."""
    app.command("null-bench")(null_bench)
    app.add_typer(trials, name="trials")


def null_bench(
    paths: Annotated[int, typer.Option(min=1, max=9_999, help="Paths of each kind.")] = 100,
    purge: Annotated[
        bool, typer.Option("--purge/--no-purge", help="--no-purge switches purging off: the bench must then fail.")
    ] = True,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="garch, bootstrap, shuffled, signal-null or planted; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the pipeline on markets without skill, and with a planted signal.

    Results are kept path by path under MLBOT_HOME/null-bench, so that a run that was stopped goes on where it was.
    Exit status 1 when skill is found where none is, or the planted signal is not.
    """
    from mlbot_core.research import null_bench as bench
    from mlbot_core.research.bench_config import KINDS, NullBenchConfig
    from mlbot_core.timeframe import Timeframe
    from mlbot_core.validation.trials import open_ledger

    # waiting OpenMP threads spin: on a busy machine they were measured to double the time of these small models
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    settings, clock = load_settings(), clock_from_env()
    config = NullBenchConfig()
    home = settings.home / "null-bench"
    recorded = bench.recorded_bars(settings.archive_dir, Timeframe.parse(config.timeframe))
    unknown = [name for name in kind or [] if name not in KINDS]
    if unknown:
        raise UsageError(f"kind {unknown[0]!r} is unknown; choose one of {', '.join(KINDS)}")
    chosen = [name for name in bench.kinds_for(purge, recorded is not None) if not kind or name in kind]
    if not chosen:
        raise UsageError(
            "nothing to run: the planted signal and its null are run with purging, bootstrap with a record"
        )
    if "planted" in chosen and "signal-null" not in chosen:
        chosen.insert(0, "signal-null")
    console = output.console(to_stderr=as_json)
    folders = {name: home / bench.bench_identity(config, name) for name in chosen}
    console.print(f"null bench: {paths} paths of {config.bars:,} bars a kind; results in {home}")
    if recorded is None:
        console.print("bootstrap of real returns is left out: no recorded bars (set MLBOT_ARCHIVE_DIR)", style="yellow")
    ledger = open_ledger(settings.home, clock)
    with _progress(console) as bars:
        for name in chosen:
            task = bars.add_task(f"{name}, {'purged' if purge else 'not purged'}", total=paths)
            for path, result in bench.run_arm(config, name, purge, paths, folders[name], recorded=recorded):
                bars.update(task, completed=path)
                if result is not None:
                    bench.count(ledger, folders[name].name, name, purge, path, result)
            bars.update(task, completed=paths)
    outcomes = [bench.judge_arm(name, purge, folders[name], paths) for name in chosen]
    if as_json:
        output.emit_json({"folder": str(home), "arms": bench.summary(outcomes)})
    else:
        _draw(outcomes)
    if any(outcome.passed is False for outcome in outcomes):
        raise typer.Exit(1)


@trials.command("list")
def list_trials(namespace: Namespace = "research", as_json: Json = False) -> None:
    """Show what was tried, one line a counted trial."""
    history = _ledger()[1].read(namespace)
    rows = [_line(row) for row in history.counted]
    if as_json:
        output.emit_json(
            {"namespace": namespace, "n_trials": history.n_trials, "head": str(history.head), "trials": rows}
        )
        return
    columns = ("trial", "market", "model", "source", "from", "days", "Sharpe", "recorded", "run")
    cells = [[row[name] for name in columns] for row in rows]
    console = output.console()
    console.print(output.table(f"Trials of {namespace}", columns, cells, right=("days", "Sharpe")))
    console.print(
        f"N = {history.n_trials} ({history.n_configurations} configurations, {len(history.rows)} evaluations); "
        f"head {history.head}",
        soft_wrap=True,
    )


@trials.command()
def verify(
    head: Annotated[
        list[str] | None, typer.Option("--head", help="A head from a report (namespace:count:hash) that must be there.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check every chain, the kept heads, and the heads named by stored backtests; exit status 1 if one is broken."""
    settings, ledger = _ledger()
    witnesses = [Head.parse(text) for text in head or []] + _stored_heads(settings, clock_from_env())
    found: list[dict[str, Any]] = []
    for namespace in NAMESPACES:
        history, problems = ledger.examine(namespace, witnesses)
        named = sum(witness.namespace == namespace for witness in witnesses)
        found.append(
            {
                "namespace": namespace,
                "evaluations": len(history.rows),
                "trials": history.n_trials,
                "heads named elsewhere": named,
                "head": str(history.head),
                "problems": problems,
            }
        )
    if as_json:
        output.emit_json(found)
    else:
        console = output.console()
        columns = ("namespace", "evaluations", "trials", "heads named elsewhere", "state")
        rows = [[*(row[name] for name in columns[:4]), "BROKEN" if row["problems"] else "sound"] for row in found]
        console.print(output.table("mlbot trials verify", columns, rows, right=columns[1:4]))
        for row in found:
            for problem in row["problems"]:
                console.print(f"BROKEN: {problem}", style="red", markup=False, soft_wrap=True)
    if any(row["problems"] for row in found):
        raise typer.Exit(1)


@trials.command()
def export(
    path: Annotated[Path, typer.Argument(help="The Parquet file to write.")],
    namespace: Namespace = "research",
    as_json: Json = False,
) -> None:
    """Write every evaluation with its returns to a Parquet file."""
    from mlbot_core.validation.trials_export import write_export

    history = _ledger()[1].read(namespace)
    write_export(history, path)
    if as_json:
        output.emit_json(
            {
                "namespace": namespace,
                "evaluations": len(history.rows),
                "path": str(path),
                "head": str(history.head),
            }
        )
        return
    output.console().print(
        f"{len(history.rows)} evaluations of {namespace} in {path}; head {history.head}", soft_wrap=True
    )


def _ledger() -> tuple[Settings, TrialLedger]:
    from mlbot_core.validation.trials import open_ledger

    settings = load_settings()
    return settings, open_ledger(settings.home, clock_from_env())


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _stored_heads(settings: Settings, clock: Clock) -> list[Head]:
    """Return the heads that stored backtests name; what the warehouse lost cannot speak."""
    from mlbot_core.warehouse import Warehouse
    from mlbot_core.warehouse.windows import exists

    if not settings.warehouse_path.exists():
        return []
    with Warehouse(settings.warehouse_path, clock).read() as con:
        rows = con.execute("SELECT summary FROM backtests").fetchall() if exists(con, "backtests") else []
    named = [json.loads(summary).get("ledger_head") for (summary,) in rows]
    return [Head.parse(text) for text in named if text]


def _line(row: Any) -> dict[str, Any]:
    from mlbot_core.validation.significance import sharpe_ratio

    settings = row.settings
    return {
        "trial": row.trial_id[:12],
        "market": settings.get("market", settings.get("bench", "")),
        "model": settings.get("model_type", settings.get("kind", "")),
        "source": settings.get("source", ""),
        "from": format_utc(row.returns.first_day_ms)[:10],
        "days": len(row.returns.values),
        "Sharpe": f"{sharpe_ratio(row.returns.values):.2f}",
        "recorded": format_utc(row.recorded_at_ms),
        "run": row.run_id[:8],
    }


def _draw(outcomes: Any) -> None:
    console = output.console()
    columns = ("arm", "paths", "measure", "mean", "99.9 % band", "without skill", "p < 5 %", "KS p", "")
    rows = []
    for outcome in outcomes:
        for at, one in enumerate(outcome.measures):
            judged = outcome.kind != "planted" and outcome.passed is not None
            rows.append(
                (
                    outcome.name if at == 0 else "",
                    outcome.paths if at == 0 else "",
                    one.name.replace("_", " "),
                    f"{one.mean:+.3f}" if one.centre == 0 else f"{one.mean:.1%}",
                    _band(one),
                    f"{one.centre:g}",
                    f"{one.small_share:.0%}",
                    f"{one.uniform_p:.3f}",
                    ("ok" if one.passed else "SKILL") if judged else "",
                )
            )
    console.print(output.table("mlbot null-bench", columns, rows, right=columns[3:8]))
    for outcome in outcomes:
        state = {True: "passes", False: "FAILS", None: "not judged"}[outcome.passed]
        console.print(f"{outcome.name}: {state}: {outcome.words}; net Sharpe {outcome.net_sharpe:+.2f}")


def _band(one: Any) -> str:
    if one.centre == 0:
        return f"{one.low:+.3f} to {one.high:+.3f}"
    return f"{one.low:.1%} to {one.high:.1%}"
