"""Which market a thing was made from, real or made up, and so where its trials count. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

RESEARCH: Final = "research"
_SYNTHETIC: Final[Mapping[str, str]] = {"planted": "demo", "null": "null"}


def is_synthetic(source: str, identity: str = "") -> bool:
    """Return whether the bars of a source are made up.

    Parameters
    ----------
    source
        Where the data came from.
    identity
        Of the market, as it is stored with its bars: empty for the real thing, the emulator's description, or the
        address that a source was pointed at. Real exchanges are only ever reached by https, which the emulator does
        not speak.
    """
    return source == "emulator" or bool(identity and not identity.startswith("https://"))


def namespace_of(source: str, identity: str = "") -> str:
    """Return the namespace of the trial ledger that a backtest counts in.

    Parameters
    ----------
    source, identity
        As for :func:`is_synthetic`; the identity ``null, seed ...`` has no signal, all other made-up markets have one.
    """
    if not is_synthetic(source, identity):
        return RESEARCH
    return _SYNTHETIC.get(identity.partition(",")[0], "demo")
