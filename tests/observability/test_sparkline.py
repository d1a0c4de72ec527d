"""Sparklines are short enough for the UI to show them at once, well-formed, and true to the numbers."""

from __future__ import annotations

import itertools
import re
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbot_core.observability.sparkline import MOST_CHARACTERS, small_table, sparkline

values = st.lists(
    st.one_of(st.floats(-1e9, 1e9), st.just(float("nan"))),
    max_size=600,
)


def paths(markdown: str) -> list[list[tuple[int, int]]]:
    """Return the pixels that each path visits, the first series first."""
    found = re.match(r"!\[.*?\]\(data:image/svg\+xml,(\S*)\)", markdown)
    assert found is not None
    drawing = ElementTree.fromstring(unquote(found[1]))
    lines = []
    for element in reversed(list(drawing)):
        pixels, at = [], (0, 0)
        for piece in re.findall(r"M[^M]*", element.attrib["d"]):
            numbers = [int(text) for text in re.findall(r"-?\d+", piece)]
            for first, (across, down) in enumerate(zip(numbers[::2], numbers[1::2], strict=True)):
                at = (at[0] + across, at[1] + down) if first else (across, down)
                pixels.append(at)
        lines.append(pixels)
    return lines


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=3))
def test_any_numbers_give_a_drawing_that_is_shown_at_once(lines: list[list[float]]) -> None:
    length = max(map(len, lines))
    same = [np.array(line + [float("nan")] * (length - len(line))) for line in lines]
    drawn = sparkline(same, "a caption, of (two) things [USD]")
    assert len(drawn) <= MOST_CHARACTERS < 1000
    assert drawn.endswith("\n\na caption, of (two) things [USD]")
    for pixels in paths(drawn):
        assert all(0 <= x <= 400 and 0 <= y <= 90 for x, y in pixels)


def test_a_rise_is_drawn_upwards_from_corner_to_corner() -> None:
    (pixels,) = paths(sparkline([np.arange(50.0)], "rise"))
    assert len(pixels) == 50
    assert (pixels[0], pixels[-1]) == ((1, 88), (399, 2))
    assert all(after[1] <= before[1] for before, after in itertools.pairwise(pixels))


def test_two_lines_share_a_scale_and_a_hole_stays_a_hole() -> None:
    low, high = np.full(10, 0.0), np.full(10, 1.0)
    low[4:6] = np.nan
    first, second = paths(sparkline([low, high], "two"))
    assert {y for _, y in first} == {88}
    assert {y for _, y in second} == {2}
    assert (len(first), len(second)) == (8, 10)


def test_long_series_are_thinned_and_keep_their_ends() -> None:
    noise = np.cumsum(np.random.default_rng(3).normal(size=5000))
    (pixels,) = paths(sparkline([noise], "noise"))
    assert len(pixels) > 100
    assert (pixels[0][0], pixels[-1][0]) == (1, 399)


def test_too_many_lines_or_words_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 3 lines, got 4"):
        sparkline([np.zeros(2)] * 4, "four")
    with pytest.raises(ValueError, match="too long"):
        sparkline([np.zeros(2)], "x" * 600)


def test_a_table_stops_where_it_would_be_hidden() -> None:
    assert small_table(("label", "share"), {"up": 0.25}) == "| label | share |\n|---|---:|\n| up | 25.0% |"
    long = small_table(("feature", "share"), {f"a_feature_with_a_name_{n}": 0.01 for n in range(100)})
    assert 900 < len(long) <= MOST_CHARACTERS
