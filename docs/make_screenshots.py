"""Take the README's pictures again: python docs/make_screenshots.py [--report FILE]   (after make demo; with Chromium).

Serves the home that the demo filled, looks at it with a headless Chromium, and writes ``docs/images/*.png``. With
``--report`` the picture of a report is that of another file, for instance one made from recorded data.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlbot_core.cli import demo
from mlbot_core.config import load_settings

IMAGES = Path(__file__).resolve().parent / "images"
MOST_BYTES = 250_000
WIDTH = 1400
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-quic"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
GROUPS = ("features", "targets", "models", "backtests", "bandit", "live", "audit")
EXPANDED = ",".join(f"global%40global%3A{group}" for group in GROUPS)


@contextmanager
def served() -> Iterator[str]:
    """Run ``mlbot up --demo`` on a free port for the length of a ``with`` block; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "mlbot_core.cli.main", "up", "--demo", "--port", str(port)])
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/server_info", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None:
                    sys.exit("mlbot up --demo ended; see above")
                time.sleep(1)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def asset_graph(page: Any, url: str) -> bytes:
    """Return the lineage with all groups but the raw series opened."""
    # it fits itself to the width, and only when it is opened
    page.set_viewport_size({"width": 2000, "height": 1900})
    page.goto(f"{url}/asset-groups?expanded={EXPANDED}")
    page.get_by_text("Hide navigation").click()
    page.reload()
    page.get_by_text("core", exact=True).first.wait_for()
    _settle(page)
    boxes = [box for node in page.locator("foreignObject").all() if (box := node.bounding_box())]
    top, left = (min(box[side] for box in boxes) - 20 for side in ("y", "x"))
    bottom = max(box["y"] + box["height"] for box in boxes) + 20
    right = max(box["x"] + box["width"] for box in boxes) + 20
    return bytes(page.screenshot(clip={"x": left, "y": top, "width": right - left, "height": bottom - top}))


def backtest_page(page: Any, url: str) -> bytes:
    """Return the top of the backtest's page, and beneath it the list of its checks."""
    page.set_viewport_size({"width": WIDTH, "height": 760})
    page.goto(f"{url}/assets/backtests/backtest")
    page.locator("td img").wait_for()
    _settle(page)
    overview = page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": 760})
    page.goto(f"{url}/assets/backtests/backtest?view=checks&checkDetail=criteria")
    page.get_by_text("criteria", exact=True).first.click()
    _settle(page)
    checks = page.screenshot(clip={"x": 0, "y": 105, "width": WIDTH, "height": 500})
    return _stacked(overview, checks)


def report_page(page: Any, report: Path) -> bytes:
    """Return the top of an HTML report."""
    page.set_viewport_size({"width": WIDTH, "height": 1480})
    page.goto(report.as_uri())
    _settle(page)
    return bytes(page.screenshot())


def _settle(page: Any) -> None:
    """Wait until nothing is loading; the graph also moves into place."""
    page.wait_for_load_state("networkidle")
    page.get_by_text("Loading").first.wait_for(state="hidden")
    page.wait_for_timeout(3000)


def _stacked(upper: bytes, lower: bytes) -> bytes:
    from PIL import Image

    above, beneath = Image.open(io.BytesIO(upper)), Image.open(io.BytesIO(lower))
    both = Image.new("RGB", (above.width, above.height + beneath.height + 2), "#d1d5db")
    both.paste(above, (0, 0))
    both.paste(beneath, (0, above.height + 2))
    buffer = io.BytesIO()
    both.save(buffer, format="png")
    return buffer.getvalue()


def save(name: str, png: bytes) -> None:
    """Write a picture at the README's width, in as many colours as its size allows."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    for colours in (256, 128, 64, 32):
        buffer = io.BytesIO()
        picture.quantize(colours, kmeans=2).save(buffer, format="png", optimize=True)
        if buffer.tell() <= MOST_BYTES:
            break
    (IMAGES / name).write_bytes(buffer.getvalue())
    print(f"{IMAGES / name}: {picture.width} x {picture.height}, {buffer.tell() // 1000} kB")


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, help="an HTML report instead of the demo's")
    chosen = parser.parse_args().report
    from playwright.sync_api import sync_playwright

    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    outer = os.environ.get("MLBOT_HOME")
    demo.enter()
    reports = sorted(load_settings().reports_dir.glob("BTC-4h-*.html"), key=lambda path: path.stat().st_mtime)
    if program is None or not reports:
        sys.exit("needs Chromium on the PATH and a demo that has run (make demo)")
    # mlbot up --demo finds the demo's home by itself, from the outer one
    os.environ.pop("MLBOT_HOME")
    if outer is not None:
        os.environ["MLBOT_HOME"] = outer
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page()
        save("report.png", report_page(page, (chosen or reports[-1]).resolve()))
        with served() as url:
            save("asset-graph.png", asset_graph(page, url))
            save("backtest-asset.png", backtest_page(page, url))
        browser.close()


if __name__ == "__main__":
    main()
