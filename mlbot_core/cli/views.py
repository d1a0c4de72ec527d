"""Three views of the lineage, as addresses to bookmark: research, live, audit.

A view is a selection in the web UI's own language, kept in its address.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

VIEWS: Final = {
    "research": "group:features or group:targets or group:models or group:backtests or group:bandit",
    "live": "group:live or group:models",
    "audit": 'group:audit or +key:"live/decision"',
}


def view_address(url: str, name: str) -> str:
    """Return the address of a view.

    Parameters
    ----------
    url
        Of the web UI.
    name
        A key of :data:`VIEWS`.
    """
    return f"{url}/asset-groups~{quote(VIEWS[name], safe=':+')}/"


def told(url: str) -> list[str]:
    """Return a line for each view: its name and its address."""
    return [f"  {name:<9}{view_address(url, name)}" for name in VIEWS]
