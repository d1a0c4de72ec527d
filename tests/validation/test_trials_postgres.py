"""The same ledger in a real Postgres of its own, on loopback."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import sqlalchemy as sa

from mlbot_core.clock import FixedClock
from mlbot_core.validation.trials import DailyReturns, LedgerTamperedError, TrialLedger, open_ledger

pytestmark = pytest.mark.slow

WRITER = """
import sys
import numpy as np
from pathlib import Path
from mlbot_core.clock import SystemClock
from mlbot_core.validation.trials import DailyReturns, TrialLedger

# a home of its own: as on another machine, nothing but the database serialises the writers
ledger = TrialLedger(Path(sys.argv[1]), SystemClock(), url=sys.argv[2])
for i in range(12):
    seed = i + 100 * int(sys.argv[3])
    returns = DailyReturns(0, np.random.default_rng(seed).normal(size=30))
    ledger.append("test", {"seed": seed}, returns, data_version="d", run_id=sys.argv[3])
"""


@pytest.fixture(scope="module")
def url(postgres_url):
    return postgres_url


def test_writers_on_different_machines_make_one_chain(url, tmp_path):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / f"home{name}"), url, str(name)])
        for name in range(3)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    ledgers = [open_ledger(tmp_path / f"home{name}", FixedClock(0), {"MLBOT_PG_URL": url}) for name in range(3)]
    histories = [ledger.read("test") for ledger in ledgers]
    assert {history.n_trials for history in histories} == {36}
    assert len({history.head for history in histories}) == 1
    assert not (tmp_path / "home0" / "trials.sqlite").exists()

    again = ledgers[0].append(
        "test", {"seed": 3}, DailyReturns(0, np.random.default_rng(3).normal(size=30)), data_version="d", run_id="x"
    )
    assert not again.new

    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM trials WHERE namespace = 'test' AND seq = 36")
        connection.exec_driver_sql(
            "UPDATE trial_heads SET count = 35, hash = (SELECT row_hash FROM trials WHERE seq = 35)"
        )
    engine.dispose()
    with pytest.raises(LedgerTamperedError, match="row 36 cut off"):
        ledgers[0].read("test")


def test_the_heads_of_two_stores_are_kept_apart(url, tmp_path):
    local, remote = TrialLedger(tmp_path, FixedClock(0)), TrialLedger(tmp_path, FixedClock(0), url=url)
    local.append("demo", {"x": 1}, DailyReturns(0, np.ones(3)), data_version="d", run_id="r")
    assert remote.read("demo").n_trials == 0
    remote.append("demo", {"x": 2}, DailyReturns(0, np.ones(3)), data_version="d", run_id="r")
    assert (local.read("demo").n_trials, remote.read("demo").n_trials) == (1, 1)
    assert len(list((tmp_path / "trials-heads").iterdir())) == 2
