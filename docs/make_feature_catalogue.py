"""Write docs/features.md and its pictures from the registry and recorded data: python docs/make_feature_catalogue.py

Every line of the page comes from the declarations; every picture is the family on recorded data (MLBOT_ARCHIVE_DIR),
computed as live would see it. With ``--check`` nothing is written and the exit status says whether the page is current
(pictures are not compared: they depend on fonts).
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mlbot_core.clock import FixedClock, parse_utc_ms
from mlbot_core.config import Settings, load_settings
from mlbot_core.features import FeatureSet, build_features, build_panel, configured_set, describe
from mlbot_core.features.incremental import Decision, read_lookback
from mlbot_core.features.inputs import series_needed, series_of
from mlbot_core.features.normalise import DESCRIPTIONS
from mlbot_core.features.registry import Feature
from mlbot_core.market import CATALOGUE
from mlbot_core.sources import open_source
from mlbot_core.timeframe import DAY_MS, Market, Month
from mlbot_core.warehouse import PartitionKey, PartitionOutcome, Verdict, Warehouse, append, record_partition
from mlbot_core.warehouse.ingest import RAW_CHECKS, partition_name

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "features.md"
IMAGES = DOCS / "images" / "features"
MOST_BYTES = 60_000
LINES = 4  # features in a picture
# the 4h series were watched live from 2025-05-12 on, once or twice a day and so mostly too late for their decisions
MARKETS = (
    ("archive", Market.parse("BTC-1h"), "2024-10-01", "2025-07-01"),
    ("archive-vintages", Market.parse("BTC-4h"), "2024-11-13", "2025-05-12"),
)
SHOWN_DAYS = 60
_PALETTE = 48
_COLOURS = ("#1f5aa6", "#c2571a", "#2e7d4f", "#7a4fa3")


@dataclass(frozen=True)
class Recorded:
    """The full set on one recorded market, the shown stretch only."""

    source: str
    market: Market
    frame: pd.DataFrame

    def known(self, name: str) -> float:
        return float(self.frame[name].notna().mean())


def recorded(settings: Settings, features: FeatureSet, source: str, market: Market, start: str, end: str) -> Recorded:
    """Store the recorded series as history, read them back as a decision at the end would, and compute."""
    start_ms, end_ms = parse_utc_ms(start), parse_utc_ms(end)
    clock = FixedClock(end_ms + DAY_MS)
    good = tuple(Verdict(check, True) for check in RAW_CHECKS)
    with tempfile.TemporaryDirectory() as folder, open_source(source, settings, clock) as archive:
        warehouse = Warehouse(Path(folder) / "store.duckdb", clock)
        with warehouse.write() as con:
            for name in CATALOGUE:
                served = archive.served(name, market)
                batch = None if served is None else archive.fetch(name, market, start_ms, end_ms)
                if batch is not None:
                    append(con, batch, now_ms=clock.now_ms())
                for month in Month.span(start_ms, end_ms):
                    key = PartitionKey(name, source, partition_name(market, month))
                    info = {"timeframe": None if batch is None else str(batch.timeframe)}
                    outcome = PartitionOutcome(key, 0 if batch is None else batch.rows, "docs", good, info)
                    record_partition(con, outcome, now_ms=clock.now_ms(), run_id="docs")
        delay = settings.intervals.settle_delay_ms(source)
        decision = Decision(source, market, end_ms - market.timeframe.ms, delay, clock.now_ms())
        with warehouse.read() as con:
            series, _ = read_lookback(con, decision, series_needed(features), start_ms)
        warehouse.close()
    panel = build_panel(series, market, start_ms, end_ms, delay)
    built = build_features(panel, features)
    return Recorded(source, market, built.loc[built["ts"] >= end_ms - SHOWN_DAYS * DAY_MS].reset_index(drop=True))


def most_telling(data: list[Recorded], family: list[Feature]) -> Recorded:
    """Return the market to draw: hourly for what prices say, 4h where the other series are not daily ones, if known."""
    hourly, vintages = data
    known = [float(np.mean([one.known(f.name) for f in family])) for one in data]
    beyond_price = any(series_of(f.name) - {"price"} for f in family)
    return vintages if beyond_price and known[1] > max(0.5, known[0] - 0.3) else hourly


def representatives(data: Recorded, family: list[Feature]) -> list[str]:
    """Return features that are known and unlike each other: each next one is the least correlated with those before."""
    names = [f.name for f in family if data.known(f.name) > 0.8 and data.frame[f.name].nunique() > 2]
    if not names:
        return []
    distance = 1 - data.frame[names].corr(method="spearman").abs().fillna(1.0)
    chosen = [names[0]]
    while len(chosen) < min(LINES, len(names)):
        rest = [name for name in names if name not in chosen]
        chosen.append(max(rest, key=lambda name: float(distance.loc[name, chosen].min())))
    return chosen


def picture(data: Recorded, names: list[str], family: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(8.6, 0.55 + 0.95 * len(names)), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    axes = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
    when = data.frame["ts"].to_numpy().astype("datetime64[ms]")
    for axis, name, colour in zip(axes, names, _COLOURS, strict=False):
        axis.plot(when, data.frame[name].to_numpy(), linewidth=0.8, color=colour)
        axis.set_title(name, fontsize=8, loc="left", pad=2, color=colour)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.005)
    figure.suptitle(f"{family}: {data.market} from recorded data ({data.source}), UTC", fontsize=9, x=0.01, ha="left")
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    # lines on white need few colours: a palette makes the file a third of the size
    Image.open(drawn).convert("RGB").quantize(_PALETTE).save(small, format="png", optimize=True)
    return small.getvalue()


def about(family: list[Feature]) -> str:
    """Return what the module of a family says about itself in its first paragraph."""
    module = importlib.import_module(f"mlbot_core.features.{family[0].family}")
    return " ".join((module.__doc__ or "").strip().split("\n\n")[0].split())


def cell(text: object) -> str:
    return str(text).replace("|", "\\|")


def section(family: str, members: list[Feature], data: Recorded | None, shown: list[str]) -> list[str]:
    lines = [f"## {family}", "", f"{about(members)} {len(members)} features.", ""]
    if data is not None and shown:
        lines += [f"![{family} on recorded data](images/features/{family}.png)", ""]
    else:
        lines += ["No recorded data of the series behind this family: it has no picture.", ""]
    lines += [
        "| feature | definition | unit | bars | seen by models | inputs | source |",
        "|---|---|---|---:|---|---|---|",
    ]
    for row in describe(members):
        inputs = ", ".join(f"`{name}`" for name in row["inputs"])
        cells = (f"`{row['name']}`", row["definition"], row["unit"], row["lookback"], row["normalise"])
        lines.append("| " + " | ".join(map(cell, (*cells, inputs, row["source"]))) + " |")
    return [*lines, ""]


def page(features: FeatureSet, sections: list[str], counts: dict[str, int], sets: dict[str, int]) -> str:
    head = [
        "# Feature catalogue",
        "",
        "<!-- written by docs/make_feature_catalogue.py from the declarations; do not edit -->",
        "",
        f"The full set holds {len(features.names)} features in {len(counts)} families. A row needs the "
        f"{features.lookback} bars before it, normalisation over {features.zscore_window} bars included, and nothing "
        "else: no feature reads ahead, none depends on where the data begins, and a longer bar joins from its close "
        "plus its publication lag on. `bars` is how far back a feature reaches before it is normalised.",
        "",
        "What models see (`normalise` of a feature): "
        + "; ".join(f"**{kind}**: {text}" for kind, text in DESCRIPTIONS.items())
        + ".",
        "",
        f"Sets in `config/models.yaml`: {', '.join(f'`{name}` ({count})' for name, count in sets.items())}. "
        "`mlbot features list --set NAME --json` prints one for programs.",
        "",
        "| family | features |",
        "|---|---:|",
        *[f"| [{family}](#{family}) | {count} |" for family, count in counts.items()],
        "",
    ]
    return "\n".join(head + sections).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not current")
    args = parser.parse_args()
    settings = load_settings()
    config = settings.models.features
    features = configured_set(config, "full")
    families: dict[str, list[Feature]] = {}
    for feature in features.features:
        families.setdefault(feature.family, []).append(feature)
    data = [recorded(settings, features, *market) for market in MARKETS]
    sections: list[str] = []
    pictures: dict[str, bytes] = {}
    for family, members in families.items():
        best = most_telling(data, members)
        shown = representatives(best, members)
        if shown:
            pictures[family] = picture(best, shown, family)
            if len(pictures[family]) > MOST_BYTES:
                sys.exit(f"{family}.png has {len(pictures[family]):,} bytes, more than {MOST_BYTES:,}; show less")
        sections += section(family, members, best, shown)
    sets = {name: len(configured_set(config, name).names) for name in config.sets}
    text = page(features, sections, {family: len(members) for family, members in families.items()}, sets)
    if args.check:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        sys.exit(0 if current else "docs/features.md is not current; run: python docs/make_feature_catalogue.py")
    IMAGES.mkdir(parents=True, exist_ok=True)
    for old in set(IMAGES.glob("*.png")) - {IMAGES / f"{family}.png" for family in pictures}:
        old.unlink()
    for family, png in pictures.items():
        (IMAGES / f"{family}.png").write_bytes(png)
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE.name}: {len(features.names)} features, {len(pictures)} pictures")


if __name__ == "__main__":
    main()
