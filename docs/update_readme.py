"""Write the result tables of both READMEs from stored backtests, so that no number is typed by hand.

python docs/update_readme.py --demo-home .mlbot/demo --archive-home PATH
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from mlbot_core.cli.status import backtests
from mlbot_core.clock import SystemClock, format_utc
from mlbot_core.research.table import COLUMNS, table_rows
from mlbot_core.timeframe import Market
from mlbot_core.warehouse import Warehouse

ROOT = Path(__file__).resolve().parents[1]
HEAD = {
    "README.md": (
        "| interval | period | bars | features | folds | trades | hit rate | net Sharpe [95 %] | max DD | verdict |"
    ),
    "README.ja.md": "| 時間足 | 期間 | 本数 | 特徴量 | fold | 取引 | 的中率 | 純 Sharpe [95 %] | 最大 DD | 判定 |",
}

# the research table without what a reader of the front page does not need
RESEARCH = {
    "timeframe": "時間足",
    "model": "モデル",
    "folds": "fold",
    "trades": "取引",
    "IC [95 %]": "IC [95 %]",
    "hit rate [95 %]": "的中率 [95 %]",
    "Sharpe [95 %]": "純 Sharpe [95 %]",
    "max DD": "最大 DD",
    "MAR": "MAR",
    "turnover a year": "年間回転",
    "DSR (N)": "DSR (N)",
    "PBO": "PBO",
    "verdict": "判定",
}


def rows(home: Path, sources: list[str]) -> list[dict[str, Any]]:
    with Warehouse(home / "warehouse.duckdb", SystemClock()).read() as con:
        found = [row for source in sources for row in backtests(con, source)]
    return sorted(found, key=lambda r: (sources.index(r["source"]), Market.parse(f"{r['symbol']}-{r['timeframe']}")))


def table(head: str, found: list[dict[str, Any]]) -> str:
    lines = [head, "|---" * head.count(" | ") + "|---|"]
    for row in found:
        period = f"{format_utc(row['start_ms'])[:10]} – {format_utc(row['end_ms'])[:10]}"
        cells = (row["timeframe"], period, f"{row['bars']:,}", row["features"], row["folds"], row["trades"])
        cells += (percent(row["hit_rate"]), interval(row), percent(row["max_drawdown"]), row["verdict"])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def research_table(found: list[dict[str, Any]], *, japanese: bool) -> str:
    names = list(RESEARCH.values()) if japanese else list(RESEARCH)
    at = [COLUMNS.index(name) for name in RESEARCH]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cells[i] for i in at) + " |" for cells in table_rows(found)]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1%}"


def interval(row: dict[str, Any]) -> str:
    if row["sharpe"] is None:
        return "n/a"
    bounds = (row["sharpe_low"], row["sharpe_high"])
    known = "too few active days" if None in bounds else f"{bounds[0]:.2f}, {bounds[1]:.2f}"
    return f"{row['sharpe']:.2f} [{known}]"


def replace(text: str, name: str, body: str) -> str:
    pattern = re.compile(rf"(<!-- {name}:start -->\n).*?(<!-- {name}:end -->)", re.S)
    if not pattern.search(text):
        raise SystemExit(f"no place for {name} between its marks")
    return pattern.sub(lambda match: f"{match[1]}{body}\n{match[2]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo-home", type=Path)
    parser.add_argument("--archive-home", type=Path)
    args = parser.parse_args()
    for name, head in HEAD.items():
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        if args.demo_home:
            text = replace(text, "demo", table(head, rows(args.demo_home, ["emulator"])))
        if args.archive_home:
            found = rows(args.archive_home, ["archive", "archive-vintages"])
            text = replace(text, "archive", research_table(found, japanese=name.endswith(".ja.md")))
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
