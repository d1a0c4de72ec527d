"""``mlbot models``: which models exist, which one is champion, and the gate between the two."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlbot_core.cli import output, shadow
from mlbot_core.clock import Clock, clock_from_env, format_utc
from mlbot_core.config import Settings, load_settings
from mlbot_core.errors import MlbotError, UsageError

if TYPE_CHECKING:
    from mlbot_core.models.registry import Entry, Registry, RegistryState, Slot

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The registry of models: candidates, champions, promotion."
)

Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
Version = Annotated[str, typer.Argument(help="A model version, or its first characters (six at least).")]
Why = Annotated[str, typer.Option("--why", help="The reason, for those who read it later.")]
Source = Annotated[str | None, typer.Option("--source", "-s", help="Only this source.")]
Symbol = Annotated[str | None, typer.Option("--symbol", help="Only this symbol.")]
Interval = Annotated[str | None, typer.Option("--interval", "-i", help="Only this interval.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Only this model type.")]

_SHORT = 12


@app.command("list")
def list_models(
    source: Source = None,
    symbol: Symbol = None,
    interval: Interval = None,
    model: Model = None,
    all_: Annotated[bool, typer.Option("--all", help="Retired ones too.")] = False,
    as_json: Json = False,
) -> None:
    """Show registered models: stage, since when, and what their backtests measured."""
    settings, clock, registry = _open()
    state = registry.state()
    measured = _measured(settings, clock)
    entries = [
        entry
        for entry in state.models.values()
        if _matches(entry.slot, source, symbol, interval, model) and (all_ or entry.stage != "retired")
    ]
    entries.sort(key=lambda entry: (entry.slot, entry.registered_ms))
    if as_json:
        output.emit_json({"head": str(state.head), "models": [_as_json(e, state, measured) for e in entries]})
        return
    console = output.console()
    if not entries:
        console.print("No model is registered. Try: mlbot train   (or with --all, to see retired ones)")
        return
    columns = ("model", "market", "type", "source", "stage", "since", "by", "Sharpe", "max DD", "trades", "test period")
    rows = [_line(entry, state, measured.get(entry.version)) for entry in entries]
    console.print(output.table("Models", columns, rows, right=columns[7:10]))
    console.print("Sharpe, max DD and trades at unit exposure, from the stored backtest of that very version.")


@app.command()
def show(version: Version, as_json: Json = False) -> None:
    """Show one model: what it is, its gate record, whether it could be loaded now, and its history."""
    from mlbot_core.models.gate import check_artefact, check_releases, gate_rows

    settings, clock, registry = _open()
    state = registry.state()
    entry = registry.find(version, state)
    problems = []
    for check in (
        lambda: check_artefact(entry.registration, settings.models_dir),
        lambda: check_releases(entry.registration),
    ):
        try:
            check()
        except MlbotError as error:
            problems.append(str(error))
    gate = gate_rows(entry, registry.signer)
    history = [
        {"at": format_utc(e.at_ms), "event": e.kind, "who": e.who, "why": e.why} for e in registry.events(entry.version)
    ]
    if as_json:
        document = _as_json(entry, state, _measured(settings, clock))
        record = None if entry.gate is None else entry.gate.facts
        output.emit_json(
            document
            | {"gate": gate, "gate_record": record, "problems": problems, "history": history}
            | {"features": list(entry.registration.features), "inputs": dict(entry.registration.inputs)}
        )
        return
    console = output.console()
    facts = _facts(entry, state)
    console.print(
        output.table(f"Model {entry.version[:_SHORT]}", ("what", "value"), [list(pair) for pair in facts.items()])
    )
    if gate:
        console.print(_gate_table(gate, "Gate record"))
    columns = ("at", "event", "who", "why")
    console.print(output.table("History", columns, [[row[name] for name in columns] for row in history]))
    for problem in problems:
        console.print(f"cannot be loaded now: {problem}", style="red", markup=False, soft_wrap=True)


@app.command()
def promote(version: Version, why: Why, as_json: Json = False) -> None:
    """Make a candidate champion, if its stored backtest passes every criterion. Exit status 1 and no change if not."""
    from mlbot_core.backtest.dataset import conditions_of
    from mlbot_core.backtest.gate_record import gate_record
    from mlbot_core.models.gate import describe_record, record_rows
    from mlbot_core.validation.trials import open_ledger
    from mlbot_core.warehouse import Warehouse

    settings, clock, registry = _open()
    entry = registry.find(version)
    ledger = open_ledger(settings.home, clock)
    delay = settings.intervals.settle_delay_ms(entry.slot.source)
    conditions = conditions_of(settings.fees, settings.risk, delay)
    record = gate_record(Warehouse(settings.warehouse_path, clock), entry, ledger, conditions)
    refusal: MlbotError | None = None
    former: Entry | None = None
    try:
        former = registry.state().champion(entry.slot)
        _require_todays_features(settings, entry)
        registry.promote(record, models_dir=settings.models_dir, ledger=ledger, why=_reason(why))
    except MlbotError as error:
        refusal = error
    rows = record_rows(record)
    if as_json:
        output.emit_json(
            {
                "model": entry.version,
                "slot": str(entry.slot),
                "synthetic": entry.registration.synthetic,
                "promoted": refusal is None,
                "retired": former.version if former is not None and refusal is None else None,
                "reason": None if refusal is None else str(refusal),
                "outcome": record.verdict.outcome,
                "criteria": rows,
                "ledger_head": record.ledger_head,
                "n_trials": record.statistics.n_trials,
            }
        )
    else:
        console = output.console()
        console.print(_gate_table(rows, f"Gate of {entry.version[:_SHORT]} ({entry.slot})"))
        console.print(describe_record(record), soft_wrap=True, markup=False)
        if refusal is None:
            label = " (SYNTHETIC: for the emulator only)" if entry.registration.synthetic else ""
            instead = f"; {former.version[:_SHORT]} is retired" if former is not None else ""
            console.print(f"{entry.version[:_SHORT]} is champion of {entry.slot}{label}{instead}", soft_wrap=True)
        else:
            console.print(f"REFUSED: {refusal}", style="red", markup=False, soft_wrap=True)
    if refusal is not None:
        raise typer.Exit(refusal.exit_code)


@app.command()
def rollback(
    why: Why,
    source: Source = None,
    symbol: Symbol = None,
    interval: Interval = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Return to the previous champion, if it still passes; options are needed only where several could be meant."""
    from mlbot_core.validation.trials import open_ledger

    settings, clock, registry = _open()
    state = registry.state()
    slots = [slot for slot in state.lines if _matches(slot, source, symbol, interval, model) and state.previous(slot)]
    if len(slots) != 1:
        what = "; ".join(f"{slot}: {slot.command}" for slot in sorted(slots)) or "none has a champion to return to"
        raise UsageError(f"{len(slots)} markets and model types could be rolled back ({what}); choose exactly one")
    ledger = open_ledger(settings.home, clock)
    after = registry.rollback(slots[0], models_dir=settings.models_dir, ledger=ledger, why=_reason(why))
    _report(slots[0], after.champions[slots[0]], state.champions.get(slots[0]), as_json)


@app.command()
def retire(version: Version, why: Why, as_json: Json = False) -> None:
    """Retire a model for good. A champion's place stays empty until a rollback or another promotion."""
    _, _, registry = _open()
    entry = registry.find(version)
    after = registry.retire(entry.version, why=_reason(why))
    _report(entry.slot, after.champions.get(entry.slot), entry.version, as_json)


@app.command()
def compare(first: Version, second: Version, as_json: Json = False) -> None:
    """Show two models side by side: parameters, features, data, and what their backtests measured."""
    settings, clock, registry = _open()
    state = registry.state()
    pair = [registry.find(text, state) for text in (first, second)]
    stored = _measured(settings, clock)
    sides = [_side(entry, state, stored.get(entry.version)) for entry in pair]
    names = [set(entry.registration.features) for entry in pair]
    only = [sorted(names[0] - names[1]), sorted(names[1] - names[0])]
    keys = list(dict.fromkeys(key for side in sides for key in side))
    if as_json:
        table = {key: [side.get(key) for side in sides] for key in keys}
        output.emit_json({"models": [e.version for e in pair], "values": table, "features_only_in": only})
        return
    console = output.console()
    # what is the same in both says nothing here, but for what was measured
    shown = [key for key in keys if key.startswith("backtest") or sides[0].get(key) != sides[1].get(key)]
    rows = [[key, *(_cell(side.get(key)) for side in sides)] for key in shown]
    columns = ("what differs", *(entry.version[:_SHORT] for entry in pair))
    console.print(output.table("mlbot models compare", columns, rows))
    for entry, own in zip(pair, only, strict=True):
        if own:
            rest = f" and {len(own) - 10} more" if len(own) > 10 else ""
            console.print(f"only in {entry.version[:_SHORT]}: {', '.join(own[:10])}{rest}", soft_wrap=True)
    console.print(f"{len(keys) - len(shown)} other values are the same in both")


def _open() -> tuple[Settings, Clock, Registry]:
    from mlbot_core.models.registry import open_registry

    settings, clock = load_settings(), clock_from_env()
    return settings, clock, open_registry(settings.home, clock)


def _matches(slot: Slot, source: str | None, symbol: str | None, interval: str | None, model: str | None) -> bool:
    wanted = (source, None if symbol is None else symbol.upper(), interval, model)
    have = (slot.source, slot.symbol, slot.timeframe, slot.model_type)
    return all(asked is None or asked == is_ for asked, is_ in zip(wanted, have, strict=True))


def _reason(text: str) -> str:
    if not text.strip():
        raise UsageError("--why is empty; say in a few words why, it is kept with the event")
    return text.strip()


def _require_todays_features(settings: Settings, entry: Entry) -> None:
    """Refuse a model of other features than the configured ones: nothing could ever be computed for it."""
    from mlbot_core.features.sets import configured_set
    from mlbot_core.models.base import FeatureMismatchError

    trained = entry.registration.inputs.get("feature_set")
    today = configured_set(settings.models.features)
    # the meta-model's columns are forecasts, which the configuration does not list
    if entry.slot.model_type != "meta" and trained != today.hash:
        raise FeatureMismatchError(
            f"model {entry.version[:_SHORT]} was trained on the features {trained}, and config/models.yaml computes "
            f"{today.hash} ({settings.models.features.set}); nothing was changed: restore that feature set, or run: "
            f"mlbot train {entry.slot.command}"
        )


def _measured(settings: Settings, clock: Clock) -> Mapping[str, Mapping[str, Any]]:
    from mlbot_core.backtest.gate_record import stored_summaries
    from mlbot_core.warehouse import Warehouse

    return stored_summaries(Warehouse(settings.warehouse_path, clock))


def _report(slot: Slot, champion: str | None, former: str | None, as_json: bool) -> None:
    if as_json:
        output.emit_json({"slot": str(slot), "champion": champion, "retired": former})
        return
    now = f"the champion is {champion[:_SHORT]}" if champion is not None else "there is no champion"
    gone = f"{former[:_SHORT]} is retired; " if former is not None else ""
    output.console().print(f"{slot}: {gone}{now}", soft_wrap=True)


def _as_json(entry: Entry, state: RegistryState, measured: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    model = entry.registration
    return {
        "model": entry.version,
        **model.as_json()["slot"],
        "stage": entry.stage,
        "role": state.role(entry),
        "synthetic": model.synthetic,
        "registered": format_utc(entry.registered_ms),
        "since": format_utc(entry.since_ms),
        "who": entry.who,
        "why": entry.why,
        "start": format_utc(model.start_ms),
        "end": format_utc(model.end_ms),
        "data_as_of": format_utc(model.data_as_of_ms),
        "artefact_sha256": model.artefact_sha256,
        "feature_count": len(model.features),
        "libraries": dict(model.libraries),
        "backtest": measured.get(entry.version),
    }


def _line(entry: Entry, state: RegistryState, summary: Mapping[str, Any] | None) -> list[object]:
    found = (summary or {}).get("measured") or {}
    unit = found.get("unit") or {}
    sharpe, fall = unit.get("sharpe"), unit.get("max_drawdown")
    label = " (synthetic)" if entry.registration.synthetic else ""
    model = entry.registration
    return [
        entry.version[:_SHORT],
        entry.slot.market,
        entry.slot.model_type,
        entry.slot.source,
        state.role(entry) + label,
        format_utc(entry.since_ms)[:16],
        entry.who,
        "n/a" if sharpe is None else f"{sharpe:.2f}",
        "n/a" if fall is None else f"{fall:.1%}",
        unit.get("trades", "n/a"),
        f"{format_utc(model.start_ms)[:10]} to {format_utc(model.end_ms)[:10]}",
    ]


def _facts(entry: Entry, state: RegistryState) -> dict[str, object]:
    model = entry.registration
    return {
        "version": entry.version,
        "of": str(entry.slot),
        "stage": state.role(entry),
        "market": f"SYNTHETIC: {model.identity or 'emulator'}" if model.synthetic else "real",
        "test period": f"{format_utc(model.start_ms)} to {format_utc(model.end_ms)}",
        "data as of": format_utc(model.data_as_of_ms),
        "features": len(model.features),
        "partitions of data": len(model.inputs.get("partitions", {})),
        "libraries": ", ".join(f"{name} {release}" for name, release in sorted(model.libraries.items())),
        "code": str(model.inputs.get("code", ""))[:_SHORT],
        "artefact SHA-256": model.artefact_sha256,
        "trained by run": model.run_id,
    }


def _side(entry: Entry, state: RegistryState, summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return one flat column of a comparison."""
    model = entry.registration
    inputs = {key: value for key, value in model.inputs.items() if key != "partitions"}
    measured = (summary or {}).get("measured") or {}
    return {
        "stage": state.role(entry),
        "market": str(entry.slot),
        "features": len(model.features),
        "data as of": format_utc(model.data_as_of_ms),
        "partitions of data": len(model.inputs.get("partitions", {})),
        **_flat("", inputs),
        **_flat("backtest", {size: measured[size] for size in ("traded", "unit") if size in measured}),
        **{f"backtest {name}": (summary or {}).get(name) for name in ("dsr", "pbo", "n_trials", "verdict")},
    }


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(f"{prefix} {key}".strip(), inner)
    return found


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _gate_table(rows: Sequence[Mapping[str, Any]], title: str) -> Any:
    cells = [
        [
            row["criterion"],
            row["size"],
            "undefined" if row["value"] is None else f"{row['value']:.4g}",
            row["bound"],
            "pass" if row["passed"] else "FAIL",
        ]
        for row in rows
    ]
    return output.table(title, ("criterion", "size", "value", "bound", ""), cells, right=("value",))


shadow.register(app)
