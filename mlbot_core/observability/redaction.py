"""Nothing secret leaves in a message: the known values are taken out, and whatever looks like one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic import BaseModel, SecretStr

from mlbot_core.config.secrets import ApiKeys

LEFT_OUT: Final = "(left out)"
_SHORTEST: Final = 6
_SECRET_VARIABLE: Final = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|WEBHOOK|PG_URL|CG_API")
_LOOKS_SECRET: Final = (
    # the password in a database's address, and tokens in the paths of webhooks
    re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"),
    re.compile(r"(?<=/services/)[A-Za-z0-9/_-]{8,}"),
    # name=value and "name": "value" of what is named like a secret
    re.compile(r"(?i)(?<=key=)[^\s&,;]+|(?<=secret=)[^\s&,;]+|(?<=token=)[^\s&,;]+|(?<=sign=)[^\s&,;]+"),
    re.compile(r"(?i)(?<=password=)[^\s&,;]+|(?<=x-bapi-api-key: )\S+|(?<=x-bapi-sign: )\S+|(?<=bearer )\S+"),
)


class Redactor:
    """Takes secrets out of texts.

    Parameters
    ----------
    secrets
        Values that must not be seen; those shorter than six characters are no secrets and are left alone.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        # the longest first: one secret may hold another
        self._values = sorted({value for value in secrets if len(value) >= _SHORTEST}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the text without them."""
        for value in self._values:
            text = text.replace(value, LEFT_OUT)
        for pattern in _LOOKS_SECRET:
            text = pattern.sub(LEFT_OUT, text)
        return text


def secrets_of(keys: ApiKeys, environ: Mapping[str, str]) -> list[str]:
    """Return every secret of the configuration and of this process' environment."""
    named = [value for name, value in environ.items() if name.startswith("MLBOT_") and _SECRET_VARIABLE.search(name)]
    return [*_values(keys), *named]


def _values(model: BaseModel) -> list[str]:
    found: list[str] = []
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, SecretStr):
            found.append(value.get_secret_value())
        elif isinstance(value, BaseModel):
            found += _values(value)
    return found
