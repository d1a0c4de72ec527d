"""``python deploy/drill``: the whole topology as plain processes on this machine, driven and broken on purpose.

It starts a Postgres of its own, ``mlbot up --live`` on the emulator with every book and Dagster's storage in it, a
Prometheus with the shipped rules, and a Slack that only listens; lets it trade for some minutes; takes the exchange
away; kills every process in turn; and searches what is left for the secrets that it was started with. Prints a table;
the exit status is 1 if a line of it is not met, 2 if a program is missing. Needs Postgres and Prometheus (Debian:
``apt-get install postgresql prometheus``), no network and no key, and listens on loopback only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from drill import Drill
from rich.console import Console
from surroundings import MissingProgramError

from mlbot_core.cli.output import table


def main() -> int:
    """Run it and return the exit status."""
    parser = argparse.ArgumentParser(prog="python deploy/drill", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long it trades before it is looked at")
    parser.add_argument("--folder", type=Path, help="an empty folder for everything; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="leave the folder when every line was met")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="mlbot-drill-"))
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(width=160)
    began = time.monotonic()

    def end(number: int, _frame: object) -> None:
        # what was started is ended on the way out
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, end)

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:7.1f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    try:
        drill = Drill(folder.resolve(), asked.minutes, say)
    except MissingProgramError as error:
        sys.stderr.write(f"drill: {error}\n")
        return 2
    drill.run()
    rows = [(line.what, line.wanted, line.found, "ok" if line.met else "MISSED") for line in drill.lines]
    console.print(table(f"Drill of {time.monotonic() - began:.0f} s", ("what", "wanted", "found", ""), rows))
    met = all(line.met for line in drill.lines)
    if met and not asked.keep:
        shutil.rmtree(folder)
    else:
        console.print(f"everything is in {folder}", soft_wrap=True)
    if asked.json:
        sys.stdout.write(json.dumps({"met": met, "lines": [asdict(line) for line in drill.lines]}) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
