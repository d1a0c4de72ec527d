"""Secrets that can be recognised wherever they come out: made for one drill, looked for in everything that it leaves.

Every canary begins with one random word of letters and digits. URL-encoding leaves that word as it is; base64 and hex
do not, so their forms of it are looked for as well, base64 at all three positions that the word can have in a group of
three bytes.
"""

from __future__ import annotations

import base64
import gzip
import secrets
import sqlite3
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

# what an address, a header or a shell would have to escape
_AWKWARD = "+/=&%"
_TEXT_TYPES = ("VARCHAR", "BLOB", "JSON", "STRUCT", "MAP", "LIST", "[]", "UNION")
_BATCH = 2_000


@dataclass(frozen=True)
class Leak:
    """A canary where it must not be."""

    place: str
    form: str


def make_canaries(names: Iterable[str], plain: Iterable[str] = ()) -> tuple[str, dict[str, str]]:
    """Return the word that all canaries begin with, and a canary by name; those in ``plain`` fit into a URL's path."""
    word = f"canary{secrets.token_hex(6)}"
    awkward = {name: f"{word}{name}{_AWKWARD}{secrets.token_hex(8)}" for name in names}
    return word, awkward | {name: f"{word}{name}{secrets.token_hex(8)}" for name in plain}


def forms(word: str) -> dict[bytes, str]:
    """Return every text that gives the word away, with the name of its form."""
    raw = word.encode()
    found = {raw: "plain or URL-encoded", raw.hex().encode(): "hex", raw.hex().upper().encode(): "hex"}
    for offset in range(3):
        # the first characters also hold the bits of what stands before, the last ones of what follows
        coded = base64.b64encode(b"\0" * offset + raw)
        found[coded[(0, 2, 3)[offset] : (offset + len(raw)) * 8 // 6]] = "base64"
    return found


def search(texts: Iterable[bytes], needles: Mapping[bytes, str]) -> set[str]:
    """Return the forms that occur."""
    return {form for text in texts for needle, form in needles.items() if needle in text}


def scan(folder: Path, word: str, leave_out: Iterable[Path] = ()) -> tuple[list[Leak], int]:
    """Look into every file under a folder; return what was found and how many files there were.

    SQLite, DuckDB and Parquet files are read as what they are on top of their bytes, since they may be compressed.
    """
    needles, left_out = forms(word), {path.resolve() for path in leave_out}
    leaks, files = [], 0
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file() or path.resolve() in left_out:
            continue
        files += 1
        leaks += [Leak(str(path.relative_to(folder)), form) for form in sorted(search(_texts(path), needles))]
        leaks += [Leak(f"name of {path.relative_to(folder)}", form) for form in search([path.name.encode()], needles)]
    return leaks, files


def _texts(path: Path) -> Iterator[bytes]:
    raw = path.read_bytes()
    yield raw
    if raw.startswith(b"SQLite format 3\0"):
        yield from _sqlite(path)
    elif raw[8:12] == b"DUCK":
        yield from _duckdb(path)
    elif raw.startswith(b"PAR1"):
        with duckdb.connect() as con:
            yield from _rows(con, "read_parquet(?)", [str(path)])
    elif raw.startswith(b"\x1f\x8b"):
        yield gzip.decompress(raw)
    elif raw.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def _sqlite(path: Path) -> Iterator[bytes]:
    con = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    con.text_factory = bytes
    try:
        for (name,) in con.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for row in con.execute('SELECT * FROM "{}"'.format(name.decode().replace('"', '""'))):
                yield b"\n".join(cell for cell in row if isinstance(cell, bytes))
    finally:
        con.close()


def _duckdb(path: Path) -> Iterator[bytes]:
    with duckdb.connect(str(path), read_only=True) as con:
        tables = con.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
        for schema, table in tables:
            yield from _rows(con, f'"{schema}"."{table}"', [])


def _rows(con: duckdb.DuckDBPyConnection, table: str, parameters: list[Any]) -> Iterator[bytes]:
    columns = con.execute(f"DESCRIBE SELECT * FROM {table}", parameters).fetchall()
    texts = [name for name, kind, *_ in columns if any(one in str(kind).upper() for one in _TEXT_TYPES)]
    if not texts:
        return
    chosen = ", ".join('"{}"'.format(name.replace('"', '""')) for name in texts)
    found = con.execute(f"SELECT {chosen} FROM {table}", parameters)
    while rows := found.fetchmany(_BATCH):
        yield b"\n".join(
            cell if isinstance(cell, bytes) else str(cell).encode("utf-8", "replace") for row in rows for cell in row
        )
