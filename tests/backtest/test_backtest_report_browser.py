"""The report in a real Chromium: it draws every figure, offline, in both themes, without a complaint."""

from __future__ import annotations

import shutil

import pytest

from mlbot_core.backtest.report import render_report
from mlbot_core.backtest.run import run_backtest

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on the PATH; install the package chromium to run this test")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(make_input, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    result = run_backtest(make_input(n=12 * 160, model_version="0123456789abcdef" * 4))
    importance = {"ret_1": 0.6, "a_feature_with_a_rather_long_name_60_2h": 0.4}
    path.write_text(render_report(result, importance), encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("dark", 420)])
def test_it_draws_everything_offline(browser, address, scheme, width):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_function(
        "document.querySelectorAll('.plot').length === document.querySelectorAll('.js-plotly-plot').length"
    )
    dark = "rgb(18, 22, 28)"
    paper = "getComputedStyle(document.body).backgroundColor"
    assert (page.evaluate(paper) == dark) == (scheme == "dark")
    page.click("#theme")
    assert (page.evaluate(paper) == dark) == (scheme != "dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()
