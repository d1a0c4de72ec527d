"""API keys: read from a file only its owner may read, or from the environment; never printed."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from mlbot_core.errors import ConfigError

_ENVIRONMENT = {
    ("cg_api",): "MLBOT_CG_API",
    ("bybit", "key"): "MLBOT_BYBIT_KEY",
    ("bybit", "secret"): "MLBOT_BYBIT_SECRET",
    ("slack_webhook",): "MLBOT_SLACK_WEBHOOK",
    ("deadman", "key"): "MLBOT_DEADMAN_KEY",
    ("deadman", "secret"): "MLBOT_DEADMAN_SECRET",
}


class _Secret(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class KeyPair(_Secret):
    """A key and its secret."""

    key: SecretStr = SecretStr("")
    secret: SecretStr = SecretStr("")


class ApiKeys(_Secret):
    """The shape of ``config/api_keys.yaml``; an empty text means "not given"."""

    cg_api: SecretStr = SecretStr("")
    bybit: KeyPair = KeyPair()
    slack_webhook: SecretStr = SecretStr("")
    deadman: KeyPair = KeyPair()


def load_api_keys(config_dir: Path, environ: Mapping[str, str] | None = None) -> ApiKeys:
    """Read ``api_keys.yaml``, overridden by the environment; a missing file means no keys.

    Raises
    ------
    ConfigError
        If others than the owner may read the file, or it does not have the expected shape. The message
        never contains a value from the file.
    """
    env = os.environ if environ is None else environ
    path = config_dir / "api_keys.yaml"
    raw: dict[str, object] = {}
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != 0o600:
            raise ConfigError(f"{path} has mode {mode:04o}: others may read your keys; run: chmod 600 {path}")
        raw = _parse(path)
    for keys, variable in _ENVIRONMENT.items():
        if not env.get(variable):
            continue
        target: dict[str, object] = raw
        for name in keys[:-1]:
            inner = target.get(name)
            inner = dict(inner) if isinstance(inner, dict) else {}
            target[name] = inner
            target = inner
        target[keys[-1]] = env[variable]
    try:
        return ApiKeys.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path} does not have the shape of api_keys.example.yaml: look at {_where(error)}") from None


def _where(error: ValidationError) -> str:
    """Name the places that are wrong; a name that is not ours may be a key somebody pasted and is not repeated."""
    known = {".".join(keys[:n]) for keys in _ENVIRONMENT for n in range(1, len(keys) + 1)}
    found = {".".join(map(str, e["loc"])) for e in error.errors(include_input=False)}
    return ", ".join(sorted(name if name in known else "a name that does not belong there" for name in found))


def _parse(path: Path) -> dict[str, object]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        # the parser's own message quotes the line, which may hold a key
        raise ConfigError(f"{path} is not valid YAML; compare it with api_keys.example.yaml") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold names and values; compare it with api_keys.example.yaml")
    return raw
