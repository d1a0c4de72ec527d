"""What a probe found, as a dated file: one item a question, no secret in it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mlbot_core.clock import format_utc
from mlbot_core.errors import MlbotError
from mlbot_core.timeframe import DAY_MS

Verdict = Literal["as_expected", "differs", "unknown"]
KIND: Final = "mlbot-probe"
VALID_MS: Final = 7 * DAY_MS


class ProbeReportError(MlbotError):
    """A probe's report is missing, too old, or found something that must be looked at."""


@dataclass(frozen=True)
class Item:
    """One question and what became of it.

    Parameters
    ----------
    name
        Stable, for comparing reports.
    question, asked, answer
        For a person: what is open, what was sent, what came back.
    matters
        Whether trading rests on it: real money is refused while such an item differs.
    """

    name: str
    question: str
    asked: str
    answer: str
    verdict: Verdict
    matters: bool = False


@dataclass(frozen=True)
class Report:
    """All items of one probe.

    Parameters
    ----------
    venue
        As asked for, ``coinglass`` included.
    account
        ``<venue>:<user id>``; empty for Coinglass.
    fingerprint
        Of the key.
    orders
        Whether an order was placed and cancelled.
    at_ms
        UTC ms.
    links
        Ids of orders that this probe used up, for a later one to try again.
    """

    venue: str
    account: str
    fingerprint: str
    orders: bool
    at_ms: int
    items: tuple[Item, ...]
    links: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {"kind": KIND, "at": format_utc(self.at_ms), **asdict(self)}

    @property
    def worst(self) -> Verdict:
        """``differs`` if any item does, else ``unknown`` if any is, else ``as_expected``."""
        found = {item.verdict for item in self.items}
        return "differs" if "differs" in found else "unknown" if "unknown" in found else "as_expected"


def folder_of_probes(live_dir: Path) -> Path:
    """Return where reports lie."""
    return live_dir / "probes"


def write_report(live_dir: Path, report: Report) -> Path:
    """Write a report whole or not at all, for its owner only; return where."""
    folder = folder_of_probes(live_dir)
    folder.mkdir(parents=True, exist_ok=True)
    stamp = format_utc(report.at_ms // 1000 * 1000).replace(":", "").replace("-", "")
    path = folder / f"{report.venue}-{stamp}.json"
    draft = path.with_suffix(".draft")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        json.dump(report.document(), file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return path


def read_reports(live_dir: Path, venue: str) -> list[Report]:
    """Return the readable reports of a venue, oldest first."""
    found = []
    for path in folder_of_probes(live_dir).glob(f"{venue}-*.json"):
        try:
            report = _read(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if report.venue == venue:
            found.append(report)
    return sorted(found, key=lambda report: report.at_ms)


def _read(raw: Mapping[str, Any]) -> Report:
    if raw["kind"] != KIND:
        raise ValueError(raw["kind"])
    items = tuple(Item(**item) for item in raw["items"])
    if not items or any(item.verdict not in ("as_expected", "differs", "unknown") for item in items):
        raise ValueError("no verdicts")
    return Report(
        str(raw["venue"]),
        str(raw["account"]),
        str(raw["fingerprint"]),
        raw["orders"] is True,
        int(raw["at_ms"]),
        items,
        tuple(map(str, raw["links"])),
    )


def require_fresh(live_dir: Path, venue: str, account: str, now_ms: int) -> Report:
    """Return the newest report of an account, which has to be younger than 7 days and good in all that matters.

    Raises
    ------
    ProbeReportError
        Otherwise.
    """
    again = f"run: mlbot probe --venue {venue}"
    mine = [report for report in read_reports(live_dir, venue) if report.account == account]
    if not mine:
        raise ProbeReportError(f"no probe of {account} lies in {folder_of_probes(live_dir)}; {again}")
    newest = mine[-1]
    age = now_ms - newest.at_ms
    if not 0 <= age < VALID_MS:
        raise ProbeReportError(
            f"the newest probe of {account} is of {format_utc(newest.at_ms)}, and it must be of the last 7 days; "
            f"{again}"
        )
    differing = [item.name for item in newest.items if item.matters and item.verdict != "as_expected"]
    if differing:
        raise ProbeReportError(
            f"the probe of {format_utc(newest.at_ms)} does not confirm {', '.join(differing)}: look at it, mend "
            f"what it shows, then {again}"
        )
    return newest
