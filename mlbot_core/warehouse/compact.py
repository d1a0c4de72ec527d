"""The store rewritten without the space that replaced and rolled back rows left, series in the order they are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlbot_core.errors import WarehouseError
from mlbot_core.market import CATALOGUE
from mlbot_core.warehouse.rebuild import contents, replace_store
from mlbot_core.warehouse.schema import columns
from mlbot_core.warehouse.store import Warehouse, connected

_SERIES_ORDER = "symbol, source, timeframe, ts, observed_at"


@dataclass(frozen=True)
class Compacted:
    """Size of the file before and after, in bytes, and the tables and rows that were rewritten."""

    before: int
    after: int
    tables: int
    rows: int


def compact(store: Warehouse) -> Compacted:
    """Rewrite the store's file; content and order of equal rows stay, verified before the files are swapped.

    Raises
    ------
    WarehouseError
        If there is no store, others kept writing, or the rewritten content differs (nothing is swapped then).
    """
    if not store.path.exists():
        raise WarehouseError(f"there is no store at {store.path} yet; nothing can be compacted")
    with store.read():
        pass  # an older store is brought forward first
    sizes: dict[str, int] = {}

    def make(copy: Path | None, new: Path) -> None:
        assert copy is not None
        _rewrite(copy, new)
        old_content, new_content = contents(copy), contents(new)
        if old_content != new_content:
            wrong = sorted(t for t in {*old_content, *new_content} if old_content.get(t) != new_content.get(t))
            raise WarehouseError(f"the rewritten store differs in {', '.join(wrong)}; the old one stays in place")
        sizes["before"], sizes["after"] = copy.stat().st_size, new.stat().st_size
        sizes["tables"] = len(new_content)
        sizes["rows"] = sum(content.rows for content in new_content.values())

    replace_store(store, "compact", make)
    return Compacted(sizes["before"], sizes["after"], sizes["tables"], sizes["rows"])


def _rewrite(copy: Path, new: Path) -> None:
    quoted = str(copy).replace("'", "''")
    with connected(new, read_only=False) as con:
        con.execute(f"ATTACH '{quoted}' AS old (READ_ONLY)")
        con.execute("COPY FROM DATABASE old TO warehouse (SCHEMA)")
        for table in columns(con):
            # of rows written at the same moment the newest wins, so their order is content too
            order = _SERIES_ORDER if table in CATALOGUE else "rowid"
            con.execute(f"INSERT INTO {table} SELECT * FROM old.{table} ORDER BY {order}")
        con.execute("DETACH old")
        con.execute("CHECKPOINT")
