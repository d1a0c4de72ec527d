"""The drill's search finds a secret in every form and every kind of file, and nothing where there is none."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import sqlite3
import subprocess
import sys
import urllib.parse
import zipfile
from pathlib import Path

import duckdb
import pytest

DRILL = Path(__file__).resolve().parents[2] / "deploy" / "drill"


@pytest.fixture(scope="module")
def canaries():
    spec = importlib.util.spec_from_file_location("drill_canaries", DRILL / "canaries.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def in_sqlite(path, secret):
    with sqlite3.connect(path) as con:
        con.execute("CREATE TABLE t (n INTEGER, body TEXT)")
        # long enough for pages of its own, so that the text is torn apart on the disk
        con.executemany("INSERT INTO t VALUES (?, ?)", [(n, "x" * 4_000 + secret + "y" * 4_000) for n in range(3)])
    con.close()


def in_duckdb(path, secret):
    with duckdb.connect(str(path)) as con:
        con.execute(
            "CREATE TABLE t AS SELECT range AS n, 'row ' || (range % 7) || ? AS body FROM range(5000)", [secret]
        )
        con.execute("CREATE SCHEMA other; CREATE TABLE other.u (v STRUCT(a VARCHAR))")
        con.execute("INSERT INTO other.u VALUES ({'a': ?})", [secret])
        con.execute("CHECKPOINT")


def in_parquet(path, secret):
    with duckdb.connect() as con:
        con.execute(f"COPY (SELECT range AS n, '{secret}' AS body FROM range(2000)) TO '{path}' (COMPRESSION zstd)")


def in_zip(path, secret):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", f"before {secret} after")


FILES = {
    "plain.log": lambda path, secret: path.write_text(f"a line\nkey={secret}\n"),
    "url.txt": lambda path, secret: path.write_text(f"postgresql://me:{urllib.parse.quote(secret, safe='')}@host/db"),
    "b64-0.txt": lambda path, secret: path.write_bytes(base64.b64encode(secret.encode())),
    "b64-1.txt": lambda path, secret: path.write_bytes(base64.b64encode(b"u" + secret.encode())),
    "b64-2.txt": lambda path, secret: path.write_bytes(base64.urlsafe_b64encode(b"me" + secret.encode())),
    "hex.txt": lambda path, secret: path.write_text(secret.encode().hex()),
    "zipped.gz": lambda path, secret: path.write_bytes(gzip.compress(f"x {secret}".encode())),
    "packed.zip": in_zip,
    "rows.sqlite": in_sqlite,
    "rows.duckdb": in_duckdb,
    "rows.parquet": in_parquet,
}


@pytest.mark.parametrize("name", FILES)
def test_a_secret_is_found_in_every_form_and_kind_of_file(canaries, tmp_path, name):
    word, made = canaries.make_canaries(["MLBOT_BYBIT_SECRET"], ["slack"])
    for number, secret in enumerate(made.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        FILES[name](folder / name, secret)
        leaks, files = canaries.scan(folder, word)
        assert {leak.place for leak in leaks} == {name}
        assert files == 1
        assert canaries.scan(folder, word, [folder / name]) == ([], 0)
        assert canaries.scan(folder, "canaryofsomebodyelse")[0] == []


def test_a_name_of_a_file_gives_it_away_too(canaries, tmp_path):
    word, made = canaries.make_canaries((), ["slack"])
    (tmp_path / f"{made['slack']}.txt").touch()
    assert [leak.form for leak in canaries.scan(tmp_path, word)[0]] == ["plain or URL-encoded"]


def test_canaries_of_two_drills_have_nothing_in_common_and_need_encoding(canaries):
    (one, first), (two, second) = (canaries.make_canaries(["a", "b"], ["c"]) for _ in range(2))
    assert one != two
    assert not set(first.values()) & set(second.values())
    assert urllib.parse.quote(first["a"], safe="") != first["a"]
    assert urllib.parse.quote(first["c"], safe="") == first["c"]
    assert all(value.startswith(one) for value in first.values())


def test_the_drill_says_what_it_needs():
    done = subprocess.run([sys.executable, DRILL, "--help"], capture_output=True, text=True, check=True)
    assert "--minutes" in done.stdout
    # no program is found in an empty PATH, and Debian's own folder of Postgres is looked into all the same
    code = "import sys; sys.path.insert(0, sys.argv[1]); import surroundings as s; s._PLACES = '';\n"
    code += "try: s.program('initdb', 'postgresql')\nexcept s.MissingProgramError as error: print(error)"
    said = subprocess.run([sys.executable, "-c", code, DRILL], capture_output=True, text=True, check=False)
    assert "initdb is not installed (Debian: apt-get install postgresql)" in said.stdout
