"""Processes that begin with the same new file all get it: none is refused because another makes it at that moment."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

BEGINNER = """
import sys, time
from pathlib import Path
import sqlalchemy as sa
from mlbot_core.validation.sqlstore import SqlStore

folder, start, rounds = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
metadata = sa.MetaData()
rows = sa.Table("rows", metadata, sa.Column("seq", sa.Integer, primary_key=True), sa.Column("text", sa.Text))
for number in range(rounds):
    refused = lambda where, why: RuntimeError(f"{where}: {why}")
    store = SqlStore(folder / f"{number}.sqlite", None, 30.0, metadata, refused)
    while time.time() < start + 0.05 * number:
        pass
    with store.transaction("rows") as connection:
        connection.execute(rows.insert().values(text="x"))
"""
PROCESSES, ROUNDS = 4, 60


def test_all_get_a_new_file(tmp_path: Path) -> None:
    start = time.time() + 4.0
    command = [sys.executable, "-c", BEGINNER, str(tmp_path), str(start), str(ROUNDS)]
    begun = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(PROCESSES)]
    words = [one.communicate(timeout=120)[1] for one in begun]
    assert [one.returncode for one in begun] == [0] * PROCESSES, "\n".join(words)[-2000:]
    assert len(list(tmp_path.glob("*.sqlite"))) == ROUNDS
