"""``mlbot features list``: the feature definitions, generated from the registry. Nothing is computed here."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mlbot_core.cli import output
from mlbot_core.config import load_settings
from mlbot_core.errors import UsageError

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make features and targets again; `list` shows the definitions.",
)


@app.command("list")
def list_features(
    chosen: Annotated[str | None, typer.Option("--set", help="A feature set of config/models.yaml.")] = None,
    family: Annotated[str | None, typer.Option("--family", help="Only this family.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")] = False,
) -> None:
    """Show a feature set: every feature with unit, history needed, scaling, definition and source."""
    found = describe_set(chosen, family)
    if as_json:
        output.emit_json(found)
        return
    console = output.console()
    of = f" of family {family}" if family else ""
    console.print(
        f"feature set {found['set']} (hash {found['hash']}): {len(found['features'])} features{of}; a row needs "
        f"{found['lookback']} bars before it; normalised over {found['zscore_window']} bars"
    )
    console.print(f"series: {', '.join(found['series'])}")
    columns = ("feature", "family", "unit", "bars", "scaling", "definition", "source")
    rows = [
        [row[name] for name in ("name", "family", "unit", "lookback", "normalise", "definition", "source")]
        for row in found["features"]
    ]
    console.print(output.table("Features", columns, rows, right=("bars",)))
    others = ", ".join(f"{name} ({count})" for name, count in found["sets"].items())
    console.print(f"sets: {others}")


def describe_set(chosen: str | None, family: str | None) -> dict[str, Any]:
    """Return a feature set as plain values.

    Returns
    -------
    dict
        ``set``, ``hash``, ``zscore_window``, ``lookback`` (bars before a row, normalisation included), ``series`` (what
        must be stored), ``features`` (a row each: ``name``, ``family``, ``unit``, ``definition``, ``source``,
        ``inputs``, ``lookback`` without the normalisation's, ``normalise``) and ``sets`` (features in each).

    Raises
    ------
    UsageError
        If there is no set or family of that name.
    """
    from mlbot_core.features import configured_set, describe
    from mlbot_core.features.inputs import series_needed

    config = load_settings().models.features
    features = configured_set(config, chosen)
    families = list(dict.fromkeys(f.family for f in features.features))
    if family is not None and family not in families:
        raise UsageError(f"set {features.name} has no family {family!r}; choose one of {', '.join(families)}")
    return {
        "set": features.name,
        "hash": features.hash,
        "zscore_window": features.zscore_window,
        "lookback": features.lookback,
        "series": list(series_needed(features)),
        "features": describe(f for f in features.features if family in (None, f.family)),
        "sets": {name: len(configured_set(config, name).names) for name in config.sets},
    }
