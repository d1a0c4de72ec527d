"""Write ``docs/risk.md``: the table of causes, and every transition of the risk state machine, tried out one by one.

python docs/make_risk_table.py
python docs/make_risk_table.py --check
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from mlbot_core.decision.risk import allowed_target, level_of, rearm, risk_check
from mlbot_core.decision.state import (
    ACTIONS,
    CAUSES,
    LEVELS,
    NORMAL,
    OBSERVED,
    Forecast,
    Limits,
    Observation,
    RiskState,
    initial_state,
)
from mlbot_core.decision.step import step
from mlbot_core.errors import UsageError
from mlbot_core.timeframe import DAY_MS, HOUR_MS, MINUTE_MS

TARGET = Path(__file__).resolve().parent / "risk.md"
CAP, TRIM = 0.10, 0.105
LIMITS = Limits(CAP, TRIM, 0.03, 0.25, 3 * HOUR_MS, 0.02, 5 * MINUTE_MS)
BAR = 2 * HOUR_MS
NOON = 20_000 * DAY_MS + 12 * HOUR_MS
NAV, PRICE = 10_000.0, 50_000.0
STRONG = 0.05
FORECASTS = {"up": Forecast(STRONG, 1.0, 0), "down": Forecast(-STRONG, 1.0, 0)}


@dataclass(frozen=True)
class Event:
    """What happens between one mark and the next.

    Parameters
    ----------
    words
        For the table.
    nav
        Afterwards, as a multiple of NAV at the day's start, which is the peak.
    flow
        Deposit less withdrawal, as a multiple of NAV.
    wait
        Until the mark, ms.
    raises, lowers
        Sets of causes that others raise and cease to raise; what was raised before is raised still.
    known
        Whether NAV is known.
    arms
        Whether a person re-arms.
    """

    words: str
    nav: float = 1.0
    flow: float = 0.0
    wait: int = MINUTE_MS
    raises: int = 0
    lowers: int = 0
    known: bool = True
    arms: bool = False


def events() -> Iterator[Event]:
    """Every event, each entry and each exit of the table of causes among them."""
    yield Event("a mark, nothing new")
    for cause in CAUSES:
        if cause.bit & OBSERVED:
            yield Event(f"`{cause.name}` is raised", raises=cause.bit)
    yield Event("every observed cause is lowered", lowers=OBSERVED)
    yield Event("NAV or mark price unknown", known=False)
    yield Event("loss of 2.99 % since the day's start", nav=1 - 0.0299)
    yield Event("loss of 3 % since the day's start", nav=1 - LIMITS.daily_loss)
    yield Event("loss of 25 % from the peak", nav=1 - LIMITS.max_drawdown)
    yield Event("deposit of half the NAV", nav=1.5, flow=0.5)
    yield Event("withdrawal of half the NAV", nav=0.5, flow=-0.5)
    yield Event("withdrawal of everything", nav=0.0, flow=-1.0)
    yield Event("first mark of the next UTC day", wait=DAY_MS)
    for cause in CAUSES:
        if cause.name in ("kill", "error"):
            yield Event(f"`{cause.name}` is raised", raises=cause.bit)
    yield Event("a person re-arms", arms=True)


def start(causes: int) -> RiskState:
    """Return the state of an account at noon with these causes active."""
    state = risk_check(initial_state(), Observation(NOON, -1, PRICE, NAV, 0.0, 0.0, 0, 0), LIMITS)
    return state._replace(causes=causes)


def after(causes: int, event: Event) -> RiskState | None:
    """Return the state after an event; None where there is nothing to re-arm."""
    state = start(causes)
    now = NOON + event.wait
    if event.arms:
        try:
            state = rearm(state, now, NAV * event.nav)
        except UsageError:
            return None
    flags = (causes & OBSERVED & ~event.lowers) | event.raises
    nav = NAV * event.nav if event.known else float("nan")
    return risk_check(state, Observation(now, -1, PRICE, nav, 0.0, NAV * event.flow, flags, 0), LIMITS)


def transition(level: int, event: Event) -> str:
    """Return the levels that an event leads to from a level, over every set of causes that amounts to it."""
    found = set()
    for causes in range(1 << len(CAUSES)):
        if level_of(causes) != level:
            continue
        state = after(causes, event)
        found.add("refused" if state is None else LEVELS[level_of(state.causes)])
    ordered = [name for name in ("refused", *LEVELS) if name in found]
    return " or ".join(ordered)


def causes_table() -> list[str]:
    lines = ["| cause | level | entered when | cleared when |", "|---|---|---|---|"]
    return lines + [f"| `{c.name}` | {LEVELS[c.level]} | {c.entered} | {c.cleared} |" for c in CAUSES]


def transitions_table(shown: list[Event]) -> list[str]:
    lines = ["| event | " + " | ".join(f"from {name}" for name in LEVELS) + " |", "|---" * (len(LEVELS) + 1) + "|"]
    return lines + [
        f"| {event.words} | " + " | ".join(transition(level, event) for level in range(len(LEVELS))) + " |"
        for event in shown
    ]


def single_causes_table(shown: list[Event]) -> list[str]:
    """One active cause at a time: what it becomes."""
    lines = ["| event | " + " | ".join(f"`{c.name}`" for c in CAUSES) + " |", "|---" * (len(CAUSES) + 1) + "|"]
    for event in shown:
        cells = []
        for cause in CAUSES:
            state = after(cause.bit, event)
            if state is None:
                cells.append("refused")
                continue
            added = [c.name for c in CAUSES if state.causes & c.bit and c.bit != cause.bit]
            kept = "stays" if state.causes & cause.bit else "cleared"
            cells.append(kept + "".join(f", + `{name}`" for name in added))
        lines.append(f"| {event.words} | " + " | ".join(cells) + " |")
    return lines


def targets_table() -> list[str]:
    """What each level lets one hold, by what is held and what is wanted."""
    held_cases = (0.0, 0.04, -0.04, 0.12)
    wanted_cases = (0.0, 0.10, -0.10, 0.50)
    lines = ["| held | wanted | " + " | ".join(LEVELS) + " |", "|---" * (len(LEVELS) + 2) + "|"]
    for held, wanted in product(held_cases, wanted_cases):
        cells = [f"{allowed_target(level, wanted, held, LIMITS):.0%}" for level in range(len(LEVELS))]
        lines.append(f"| {held:.0%} | {wanted:.0%} | " + " | ".join(cells) + " |")
    return lines


def actions_table() -> list[str]:
    """What a decision asks for, by level, position and a forecast that beats its cost."""
    lines = [
        "| level | position | forecast | action | target | an earlier entry that still works |",
        "|---|---|---|---|---|---|",
    ]
    words = {0.0: "flat", 0.10: "long 10 %", -0.10: "short 10 %"}
    by_level = {c.level: c.bit for c in CAUSES} | {NORMAL: 0}
    for level, held, (name, forecast) in product(range(len(LEVELS)), words, FORECASTS.items()):
        cause = by_level[level]
        state = start(cause)._replace(target=held)
        seen = Observation(NOON + BAR, NOON, PRICE, NAV, held * NAV / PRICE, 0.0, cause & OBSERVED, 0)
        _, decision = step(state, seen, forecast, LIMITS, 0.0015)
        kept = "goes on" if decision.keep_entries else "is cancelled"
        action = ACTIONS[decision.action]
        lines.append(f"| {LEVELS[level]} | {words[held]} | {name} | {action} | {decision.target:.0%} | {kept} |")
    return lines


def document() -> str:
    """Return the whole text."""
    shown = list(events())
    parts = [
        "# The risk state machine",
        "",
        "Written by `docs/make_risk_table.py` from `mlbot_core.decision`: every cell below is what the compiled code",
        "answered. Do not edit it; run the script.",
        "",
        "The state is the set of active causes; the most severe one rules. One function, `risk_check`, takes one mark",
        "of the account (time, NAV, mark price, deposits and withdrawals, causes that others found) and returns the",
        "next state; `step` calls it at every decision, the resident watch every few seconds, the simulator at every",
        "open, close and level that is met. The state is stored, and a restart continues in it.",
        "",
        f"The limits here: cap {CAP:.0%} of NAV, trimmed above {TRIM:.1%}, {LIMITS.daily_loss:.0%} a UTC day, "
        f"{LIMITS.max_drawdown:.0%} from the peak.",
        "",
        "## Causes",
        "",
        *causes_table(),
        "",
        "## From level to level",
        "",
        f"Each cell is tried with every one of the {1 << len(CAUSES)} sets of causes that amounts to the level it",
        "starts from, at noon, NAV at its peak and at the day's start. A cell with two levels depends on which causes",
        "are active: the next table tells. A cause that others found holds as long as they raise it, here until it is",
        "lowered.",
        "",
        *transitions_table(shown),
        "",
        "## From cause to cause",
        "",
        "One active cause at a time, and what becomes of it.",
        "",
        *single_causes_table(shown),
        "",
        "## What a level lets one hold",
        "",
        "Fractions of NAV, signed. Only reducing means: not more than is held, and not the other side.",
        "",
        *targets_table(),
        "",
        "## What a decision asks for",
        "",
        "With a forecast that beats its cost.",
        "",
        *actions_table(),
        "",
        "## Deposits and withdrawals",
        "",
        "They scale the day's start and the peak by NAV after over NAV before: a flow alone changes neither the day's",
        "return nor the drawdown. Where nothing is left to scale, because everything was withdrawn or was lost before",
        "a deposit, what there was before the flow is judged by the limits, and what there is afterwards starts anew;",
        "active causes stay. An account that holds nothing has nothing to lose: its limits start at the first positive",
        "NAV.",
        "",
        "## The day",
        "",
        f"A UTC day starts at its first mark within {LIMITS.day_grace_ms // MINUTE_MS} minutes after midnight; if that",
        "comes later, at the higher of the last mark before midnight and the first one after. Days without a mark are",
        "bridged by the same rule.",
    ]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the file is not current")
    text = document()
    if parser.parse_args().check:
        if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
            sys.exit(f"{TARGET} is not current; run `python docs/make_risk_table.py`")
        return
    TARGET.write_text(text, encoding="utf-8")
    print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
