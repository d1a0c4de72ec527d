"""Postgres is killed while a live bar is worked on: its run must not count as running for ever."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from mlbot_core.decision.state import DATA_STALE
from mlbot_core.live.failures import OWNER

DRILL = Path(__file__).resolve().parents[2] / "deploy" / "drill"
CODE_SERVER_LOOKS_S = 60
# Dagster asks a database that is away again for some twelve seconds, then gives up
AWAY_S = 30


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """The drill's own Postgres and bot, which import one another by their plain names."""
    monkeypatch.syspath_prepend(str(DRILL))
    yield importlib.import_module("surroundings"), importlib.import_module("bot")
    for name in ("surroundings", "bot"):
        sys.modules.pop(name, None)


def executing(code_server: int) -> list[psutil.Process]:
    """Return the processes of a code server that execute runs."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(code_server).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(child.cmdline()):
                    found.append(child)
    return found


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_a_live_run_that_loses_postgres_ends_as_failed_and_only_reducing_is_allowed(
    tmp_path: Path, parts: tuple[Any, Any]
) -> None:
    if shutil.which("initdb") is None and not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        pytest.skip("no Postgres on this machine (initdb)")
    surroundings, drill = parts
    wait = surroundings.wait
    postgres = surroundings.Postgres(tmp_path / "postgres", "secret")
    secrets = {f"MLBOT_{name}_{part}": f"{name}-{part}" for name in ("BYBIT", "DEADMAN") for part in ("KEY", "SECRET")}
    secrets |= {
        f"MLBOT_EMULATOR_{name}_{part}": f"{name}-{part}" for name in ("TRADE", "DEADMAN") for part in ("KEY", "SECRET")
    }
    secrets |= {"MLBOT_CG_API": "coinglass", "MLBOT_SLACK_WEBHOOK": "http://127.0.0.1:9/nobody"}
    bot = drill.Bot(tmp_path, secrets, {"MLBOT_PG_URL": postgres.url})
    engine = sa.create_engine(postgres.url.replace("postgresql:", "postgresql+psycopg2:"), poolclass=sa.pool.NullPool)

    def runs(status: str) -> list[str]:
        with engine.connect() as con:
            asked = sa.text("SELECT run_id FROM runs WHERE status = :status AND pipeline_name = 'live_bar'")
            return [row[0] for row in con.execute(asked, {"status": status})]

    try:
        postgres.create()
        postgres.start()
        bot.configure()
        bot.start()
        now = bot.clock.now_ms()
        bot.clock.set_ms(drill.BAR.floor(now) + drill.BAR.ms - drill.AHEAD_MS)
        (run_id,) = wait(lambda: runs("STARTED"), 120, "a live run")
        code_server = bot.pid("code-server")
        assert code_server is not None
        assert executing(code_server)
        postgres.kill()
        wait(lambda: not executing(code_server), 180, "the end of the process of the run")
        # until the code server, which looks twice a second for dead runs, has looked in vain
        time.sleep(AWAY_S)
        assert bot.pid("code-server") == code_server
        postgres.start()

        began = time.monotonic()
        wait(lambda: run_id in runs("FAILURE"), CODE_SERVER_LOOKS_S, "the run to count as failed")
        print(f"failed {time.monotonic() - began:.1f} s after Postgres was back")
        with bot.book() as book:
            wait(lambda: book.has_alert(run_id), 60, "the alert")
            # the alert is written first
            wait(lambda: book.flags(drill.CONTRACT, OWNER) & DATA_STALE, 30, "only reducing")
        print(f"told {time.monotonic() - began:.1f} s after Postgres was back")
    finally:
        bot.stop()
        bot.end_left_behind()
        postgres.stop()
        engine.dispose()
