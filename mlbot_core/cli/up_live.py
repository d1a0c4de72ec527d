"""``mlbot up --live``: everything that trades, watched over by one supervisor."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from mlbot_core.cli.live_services import live_set
from mlbot_core.cli.status import running
from mlbot_core.cli.supervisor import Supervisor, end_left_behind
from mlbot_core.cli.up import home_lock, require_free, servers_environment, stop_signals, write_holder
from mlbot_core.cli.views import told
from mlbot_core.config import Settings
from mlbot_core.execution.safety import process_started


def up_live(settings: Settings, console: Console, *, host: str, port: int, warm: bool) -> int:
    """Trade until interrupted; return the exit status.

    Stopping it closes no position: the stop at the exchange stays, and the next start goes on from the book.

    Raises
    ------
    AlreadyUpError
        If this home is served already.
    UsageError
        If the port is taken or the address is not one of this machine.
    ConfigError
        If the decision clock is not a configured market.
    ServiceError
        If a service does not come up.
    """
    market, venue = settings.decision_market, settings.execution.venue
    url = f"http://{host}:{port}"

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    end_orphans(settings.home, settings.live_dir, say)
    with home_lock(settings.home, url) as lock_fd, stop_signals() as stopping:
        require_free(host, port)
        chosen = live_set(settings, host, port, warm=warm)
        environment = {**servers_environment(settings, settings.emulator_url), **chosen.environment}
        supervisor = Supervisor(chosen.services, environment, settings.live_dir, say, (lock_fd,))
        me = os.getpid()
        write_holder(lock_fd, {"pid": me, "begun": process_started(me), "url": url, "live": venue})
        say(f"mlbot trades {market} at {venue}; the UI is {url} (home {settings.home}); stop it with Ctrl-C")
        for line in told(url):
            say(line)
        # nothing that guards the account waits for it
        threading.Thread(target=lambda: say(_decides(environment)), daemon=True).start()
        supervisor.run(stopping)
        say("mlbot is stopped; positions and their stops at the exchange stay as they are")
        if sys.stdout.isatty():
            say("to close them: mlbot flatten")
    return 0


def _decides(environment: Mapping[str, str]) -> str:
    """Say whose forecast decides; asked in a process of its own, since a supervisor lives long and stays small."""
    command = [sys.executable, "-m", "mlbot_core.live.deciding"]
    done = subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, check=False, start_new_session=True
    )
    return (done.stdout or done.stderr).strip()


def end_orphans(home: Path, live_dir: Path, say: Callable[[str], None]) -> None:
    """End the services of a supervisor that was killed: they hold the lock of the home as long as they live."""
    holder = running(home / "up.lock")
    # the number alone may be another process's by now
    if holder is not None and holder.get("live") and process_started(int(holder["pid"])) != holder.get("begun"):
        end_left_behind(live_dir / "services.json", say)
