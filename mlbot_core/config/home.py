"""Dagster's folder inside our home: made the same way by whoever starts Dagster."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mlbot_core.config.settings import Settings, checkout_root


def prepare_dagster_home(settings: Settings) -> Path:
    """Create the folder with this checkout's ``dagster.yaml`` in it, replaced whole or not at all; return it."""
    home = settings.dagster_home
    home.mkdir(parents=True, exist_ok=True)
    wanted = checkout_root() / "dagster.yaml"
    present = home / "dagster.yaml"
    if wanted.exists() and (not present.exists() or present.read_bytes() != wanted.read_bytes()):
        temporary = present.with_suffix(f".{os.getpid()}.tmp")
        shutil.copyfile(wanted, temporary)
        temporary.replace(present)
    return home
