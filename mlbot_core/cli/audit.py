"""``mlbot explain`` and ``mlbot replay``: why something was traded, and that it would be decided again."""

from __future__ import annotations

from typing import Annotated

import typer

from mlbot_core.cli import output
from mlbot_core.clock import clock_from_env
from mlbot_core.config import load_settings

Name = Annotated[str, typer.Argument(help="Id of a decision, an intent, an order or a fill, or its first characters.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]


def register(app: typer.Typer) -> None:
    """Add the two commands."""
    app.command("explain")(explain)
    app.command("replay")(replay)


def explain(
    name: Name,
    top: Annotated[int, typer.Option(min=1, help="How many features to name.")] = 10,
    as_json: Json = False,
) -> None:
    """Show the chain from a fill or an order down to the raw rows that it was decided on."""
    from mlbot_core.observability.audit import Audit
    from mlbot_core.observability.audit import explain as chain_of
    from mlbot_core.observability.audit_text import chain_lines

    chain = chain_of(Audit.open(load_settings(), clock_from_env()), name, top=top)
    if as_json:
        output.emit_json(chain)
        return
    console = output.console()
    for line in chain_lines(chain):
        console.print(line, markup=False, soft_wrap=True)


def replay(name: Name, as_json: Json = False) -> None:
    """Decide again from what is stored, bit for bit. Exit status 1 if something differs that must not."""
    from mlbot_core.observability.audit import Audit
    from mlbot_core.observability.audit_replay import replay as again

    done = again(Audit.open(load_settings(), clock_from_env()), name)
    if as_json:
        output.emit_json(done.as_json())
    else:
        console = output.console()
        rows = [(part.name, part.outcome, part.detail) for part in done.parts]
        console.print(output.table(f"Replay of {done.decision_id}", ("part", "outcome", "detail"), rows))
        for line in done.code_changes[:20]:
            console.print(f"code since then: {line}", markup=False, soft_wrap=True)
        if len(done.code_changes) > 20:
            console.print(f"and {len(done.code_changes) - 20} other files")
        console.print("the same, to the bit" if done.passed else "DIFFERS", style=None if done.passed else "red")
    if not done.passed:
        raise typer.Exit(1)
