from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from mlbot_core.backtest.plots import MAX_MARKERS, MAX_PRICE_POINTS, summary_png, thin, trades_figure
from mlbot_core.backtest.report import render_report, summary_row
from mlbot_core.backtest.run import run_backtest

SECTIONS = (
    "criteria",
    "significance",
    "equity",
    "rolling",
    "months",
    "trades",
    "costs",
    "distribution",
    "regimes",
    "calibration",
    "importance",
    "metrics",
    "folds",
    "provenance",
)
PLOTS = {
    "plot-equity",
    "plot-traded",
    "plot-rolling",
    "plot-trades",
    "plot-trades-end",
    "plot-costs-unit",
    "plot-costs-traded",
    "plot-distribution",
    "plot-holding",
    "plot-regimes",
    "plot-calibration",
    "plot-importance",
}


@pytest.fixture(scope="module")
def result(make_input):
    return run_backtest(make_input(n=12 * 120))


@pytest.fixture(scope="module")
def folds():
    return pd.DataFrame(
        {"fold": [0, 1], "train_end_ms": [1_704_067_200_000, 1_706_745_600_000], "log_loss": [0.98, math.nan]}
    )


@pytest.fixture(scope="module")
def page(result, folds):
    importance = pd.DataFrame({"feature": ["ret_1", "</script><b>x"], "gain_share": [0.7, 0.3]})
    return render_report(result, importance, folds)


def _own(page: str) -> str:
    """The page without the inlined plotly.js."""
    return page.split("<script>/**\n* plotly.js")[0] + page.rsplit("</script>", 2)[1]


def _figures(page: str) -> dict:
    return json.loads(re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1])


def test_every_section_and_figure_is_there(page):
    for name in SECTIONS:
        assert f"<section id='{name}'>" in page
    figures = _figures(page)
    assert set(figures) == PLOTS
    for name, figure in figures.items():
        assert f"<div class='plot' id='{name}'" in page
        assert figure["data"]


def test_figures_are_valid_plotly(page):
    import plotly.graph_objects as go

    for figure in _figures(page).values():
        go.Figure(figure)


def test_nothing_is_loaded_from_elsewhere(page):
    assert page.count("* plotly.js v") == 1
    own = _own(page)
    assert len(own) < 1_500_000
    assert not re.search(r"https?://|//cdn|@import|url\(", own)
    assert not re.search(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=", page.split("* plotly.js")[0])
    assert "default-src 'none'" in own
    assert len(page.encode()) < 8_000_000


def test_the_synthetic_banner_is_there_only_when_it_is_one(result, page):
    assert "SYNTHETIC MARKET" in page
    real = dataclasses.replace(result, input=dataclasses.replace(result.input, synthetic=False))
    assert "SYNTHETIC MARKET" not in render_report(real)


def test_words_of_the_verdict_and_provenance(result, page):
    assert result.verdict.outcome in page
    assert "not evaluated (needs the trial ledger)" in page
    assert "A note on the data." in page
    assert "no mark price is recorded" in page
    assert "share of data: modelled" in page
    assert "75.0%" in page
    assert "2024-02-01" in page  # a fold's date


def test_outside_text_is_escaped(result):
    evil = "<script>alert(1)</script>"
    data = dataclasses.replace(result.input, model_version=evil, notes=(evil,), source=evil, shares={evil: 0.5})
    page = render_report(
        dataclasses.replace(result, input=data, notes=(evil,)),
        {evil: 1.0},
        pd.DataFrame({evil: [evil]}),
    )
    assert evil not in page
    assert "<\\/script>" in page


@pytest.fixture
def degenerate(make_input, request):
    data = make_input()
    nan = data.forecasts.assign(p_up=np.nan, p_down=np.nan, p_neutral=np.nan, score=np.nan)
    one_day = {name: getattr(data, name).iloc[:6] for name in ("bars", "forecasts", "targets")}
    return {
        "no trades": dataclasses.replace(data, forecasts=nan),
        "one day": dataclasses.replace(data, **one_day),
        "one bar": dataclasses.replace(data, **{k: v.iloc[:1] for k, v in one_day.items()}),
        "no labels": dataclasses.replace(data, targets=data.targets.assign(label=np.nan, t1=np.nan)),
    }[request.param]


@pytest.mark.parametrize("degenerate", ["no trades", "one day", "one bar", "no labels"], indirect=True)
def test_a_report_of_nearly_nothing_says_so_instead_of_failing(degenerate):
    result = run_backtest(degenerate)
    page = _own(render_report(result, {"a": math.nan}, None))
    for name in SECTIONS:
        assert f"<section id='{name}'>" in page
    assert not re.search(r"\bnan\b|NaN|>inf|None", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    assert re.search(r"nothing to draw|No trades|No realised labels|No feature importance", page)
    assert result.verdict.refused
    assert len(summary_png(result)) < 150_000
    json.dumps(summary_row(result), allow_nan=False)


def test_summary_png_is_a_small_picture(result):
    png = summary_png(result)
    assert png.startswith(b"\x89PNG")
    assert 5_000 < len(png) < 150_000


def test_summary_row_is_plain_and_complete(result):
    row = summary_row(result)
    json.dumps(row, allow_nan=False)
    assert row["timeframe"] == "2h"
    assert row["bars"] == 1440
    assert row["features"] == 44
    assert row["folds"] == 4
    assert row["verdict"] == result.verdict.outcome
    assert row["sharpe_low"] < row["sharpe"] < row["sharpe_high"]
    assert row["max_drawdown"] == result.metrics["unit"].drawdown.depth


def test_thinning_keeps_extremes_and_ends():
    values = np.random.default_rng(0).normal(size=50_000)
    values[[1234, 40_000]] = [99.0, -99.0]
    values[7] = np.nan
    rows = thin(values, 1000)
    assert len(rows) <= 1000
    assert {0, 1234, 40_000, 49_999} <= set(rows)
    assert (np.diff(rows) > 0).all()
    assert len(thin(values[:10], 1000)) == 10


def test_a_long_record_is_thinned_and_says_so(make_input):
    result = run_backtest(make_input(n=20_000, skill=0.1))
    figure, words = trades_figure(result)
    assert len(figure["data"][0]["x"]) <= MAX_PRICE_POINTS
    assert "of 20,000 closes drawn" in words
    entries = sum(len(t["x"]) for t in figure["data"] if "entry" in t["name"])
    assert entries <= MAX_MARKERS
    page = render_report(result)
    assert len(page.encode()) < 8_000_000
    assert len(summary_png(result)) < 150_000
