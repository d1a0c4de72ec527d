"""``mlbot probe``: ask the open points of the references of a real account, and keep what came back."""

from __future__ import annotations

from typing import Annotated

import typer

from mlbot_core.cli import output
from mlbot_core.clock import clock_from_env
from mlbot_core.config import load_settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(probe)


def probe(
    venue: Annotated[
        str,
        typer.Option("--venue", help="emulator, paper, demo, testnet, mainnet or coinglass; default: as configured."),
    ] = "",
    orders: Annotated[
        bool, typer.Option("--orders", help="Also place and cancel a far-away order of the smallest size.")
    ] = False,
    yes_real_money: Annotated[
        bool, typer.Option("--yes-real-money", help="Allow --orders on mainnet, with both switches on.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write JSON to standard output, progress to standard error.")
    ] = False,
) -> None:
    """Answer the open points of an exchange or of Coinglass with a real key; reads only, unless --orders is given."""
    from mlbot_core.execution.probe import run_probe

    settings = load_settings()
    console = output.console(to_stderr=True)
    report, path = run_probe(
        settings,
        clock_from_env(),
        venue or settings.execution.venue,
        orders=orders,
        real_money=yes_real_money,
        progress=lambda name: console.print(f"asking: {name}", style="dim"),
    )
    if as_json:
        output.emit_json({**report.document(), "path": str(path)})
    else:
        rows = [
            (item.name, item.verdict.replace("_", " "), "yes" if item.matters else "", item.question, item.answer)
            for item in report.items
        ]
        title = f"mlbot probe --venue {report.venue}"
        shown = output.console()
        shown.print(output.table(title, ("what", "verdict", "matters", "question", "answer"), rows), markup=False)
        shown.print(f"report: {path}", soft_wrap=True)
    if report.worst == "differs":
        raise typer.Exit(1)
