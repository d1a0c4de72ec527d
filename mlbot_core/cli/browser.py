"""Opening a written file in the browser of whoever sits before the machine."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def open_files(paths: Sequence[Path], console: Console) -> bool:
    """Open files in the default browser (``$BROWSER`` where it is set), and say so where there is none.

    Parameters
    ----------
    paths
        Files; what is printed about them otherwise is the caller's business.
    console
        Where to say it.

    Returns
    -------
    bool
        Whether every one was handed to a browser.
    """
    opened = [webbrowser.open(path.resolve().as_uri()) for path in paths]
    if not all(opened):
        console.print("No browser could be opened here: open the report's file yourself, or set BROWSER.")
    return all(opened)
