"""``mlbot signal``: what the models say of the newest closed bar, with or without trading."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer
from pydantic import SecretStr

from mlbot_core.cli import output, selection
from mlbot_core.clock import Clock, clock_from_env, format_utc
from mlbot_core.config import Settings, load_settings
from mlbot_core.timeframe import Market

if TYPE_CHECKING:
    from mlbot_core.sources import Source

SECRET_VARIABLE = "MLBOT_WEBHOOK_SECRET"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("signal")(signal)


def signal(
    interval: Annotated[
        list[str] | None,
        typer.Option("--interval", "-i", help="30m, 1h, 2h or 4h; may be repeated; default: the decision clock's."),
    ] = None,
    source: Annotated[str | None, typer.Option("--source", "-s", help="Where the bars come from.")] = None,
    symbol: Annotated[str | None, typer.Option("--symbol", help="A configured symbol.")] = None,
    webhook: Annotated[
        str | None,
        typer.Option("--webhook", help=f"Post the forecasts there as JSON; signed if {SECRET_VARIABLE} is set."),
    ] = None,
    no_pull: Annotated[bool, typer.Option("--no-pull", help="Ask no source: forecast what is stored.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
) -> None:
    """Forecast the newest closed bar with every registered model and store what they say; nothing is traded."""
    from mlbot_core.live.webhook import post

    settings, clock = load_settings(), clock_from_env()
    name = selection.source_name(settings, source)
    chosen = selection.markets(
        settings, clock, name, symbol or settings.execution.symbol, interval or [str(settings.execution.timeframe)]
    )
    with _opened(settings, clock, name, needed=not no_pull) as opened:
        found = [forecast_now(settings, clock, name, market, opened) for market in chosen]
    document: dict[str, Any] = {"markets": found}
    if webhook is not None:
        secret = SecretStr(os.environ.get(SECRET_VARIABLE, ""))
        told = post(webhook, document, clock, secret)
        document |= {"delivered": {"status": told.status, "attempts": told.attempts}}
    if as_json:
        output.emit_json(document)
        return
    console = output.console()
    for one in found:
        _draw(console, one)
    if webhook is not None:
        console.print(f"told the webhook: HTTP {told.status} at attempt {told.attempts}")


def forecast_now(
    settings: Settings, clock: Clock, source: str, market: Market, opened: Source | None
) -> dict[str, Any]:
    """Pull and forecast the newest closed bar of a market; return plain values.

    Raises
    ------
    MissingDataError
        If no model is registered, or the bar cannot be had.
    """
    from mlbot_core.live.chosen import load_cast, stacked_by
    from mlbot_core.live.pull import pull
    from mlbot_core.live.signals import forecast_newest
    from mlbot_core.warehouse import Warehouse

    store = Warehouse(settings.warehouse_path, clock)
    run_id = f"signal-{uuid4().hex[:12]}"
    # first of all whether there is anybody to ask
    cast = load_cast(settings, clock, source, market, settings.execution.venue)
    pulled: list[dict[str, Any]] = []
    if opened is not None:
        stacked = {base.market for one in cast.speakers for base in stacked_by(one.entry)}
        identity = _identity(settings, source)
        for one in sorted({market, *stacked}):
            pulled.append(pull(store, opened, settings, one, run_id=run_id, identity=identity).as_json())
    said = forecast_newest(store, settings, source, market, run_id=run_id, wait_s=0.0, make_others=True)
    return {**said.as_json(), "pulled": pulled}


@contextmanager
def _opened(settings: Settings, clock: Clock, name: str, *, needed: bool) -> Iterator[Source | None]:
    """Open the source; an emulator that is configured but not running is started for as long as it is needed."""
    from mlbot_core.sources import open_source

    if not needed:
        yield None
        return
    with ExitStack() as stack:
        url = settings.emulator_url if name == "emulator" else None
        if name == "emulator" and url is None:
            from mlbot_core.emulator.launch import serve

            url = stack.enter_context(serve(settings.intervals.emulator, clock))
        yield stack.enter_context(open_source(name, settings, clock, base_url=url))


def _identity(settings: Settings, source: str) -> str:
    """Return which market a source with several of them serves."""
    if source == "bybit":
        return settings.bybit_url or ""
    return settings.intervals.emulator.identity if source == "emulator" else ""


def _draw(console: Any, found: dict[str, Any]) -> None:
    columns = ("model", "version", "role", "p down", "p neutral", "p up", "score", "edge", "usable")
    rows = [
        [
            one["model_type"],
            one["model_version"][:12],
            one["role"] + (" (shadow)" if one["shadow"] else ""),
            *(_number(one[name]) for name in ("p_down", "p_neutral", "p_up", "score")),
            "n/a" if one["edge"] is None else f"{one['edge'] * 1e4:+.1f} bp",
            "yes" if one["usable"] else "no",
        ]
        for one in found["signals"]
    ]
    title = f"{found['market']} from {found['source']}, bar {found['bar']}{' (LATE)' if found['late'] else ''}"
    console.print(output.table(title, columns, rows, right=columns[3:8]))
    for one in found["signals"]:
        if one["reason"]:
            console.print(f"{one['model_type']}: {one['reason']}", markup=False, soft_wrap=True)
    for one in found["pulled"]:
        if one["late"] or one["missing"] or one["restated"]:
            told = "; ".join(f"{word}: {', '.join(one[word])}" for word in ("late", "missing", "restated") if one[word])
            console.print(f"{one['market']} {told}", markup=False, soft_wrap=True)
    for one in found["refused"]:
        console.print(f"{one['model']}: REFUSED: {one['reason']}", style="red", markup=False, soft_wrap=True)
    console.print(f"made of what was known by {found['decision_time']}; now {format_utc(clock_from_env().now_ms())}")


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
