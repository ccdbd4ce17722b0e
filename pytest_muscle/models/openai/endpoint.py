"""Where a server listens, and the key it asks for."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from pytest_muscle.errors import MuscleError
from pytest_muscle.models import ModelOptions

OWN_URL = "https://api.openai.com/v1"
_SHORTEST_SECRET = 8


class Endpoint:
    """A server's address and the key for it, which comes from the environment and is shown nowhere.

    ``is_own`` says that it is OpenAI's own server, whose API differs in small ways from what others
    offer under its name. The key in ``OPENAI_API_KEY`` goes to the server that the environment names, or
    to OpenAI's; a server named in a table gets only the key that the table names.
    """

    __slots__ = ("is_own", "key", "url")

    def __init__(self, spec: str, options: ModelOptions, environment: Mapping[str, str] = os.environ) -> None:
        """Find address and key; raises MuscleError where the address is none or the key is not set."""
        self.url = (options.base_url or environment.get("OPENAI_BASE_URL") or OWN_URL).rstrip("/")
        self.is_own = self.url == OWN_URL
        parts = urlsplit(self.url)
        if parts.username or parts.password or parts.query:
            raise MuscleError(
                f"model '{spec}': its base_url holds a password or a query; keys come from the environment "
                "only: put it into a variable and name that in 'api_key_env'"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise MuscleError(
                f"model '{spec}': base_url {self.url!a} is no address; write it as http://localhost:8000/v1"
            )
        self.key = _key(spec, options, environment)
        if self.is_own and not self.key:
            raise MuscleError(
                f"model '{spec}': the environment variable OPENAI_API_KEY is not set; for another server "
                "than OpenAI's set OPENAI_BASE_URL, or base_url in the model's table"
            )

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"

    def hide(self, text: str) -> str:
        """Return the text without the key, which some servers repeat; a placeholder for a key may stay."""
        return text.replace(self.key, "[key]") if len(self.key) >= _SHORTEST_SECRET else text


def _key(spec: str, options: ModelOptions, environment: Mapping[str, str]) -> str:
    name = options.api_key_env
    if name is None:
        return "" if options.base_url else environment.get("OPENAI_API_KEY", "")
    # What is no variable's name may be the key itself, and is not repeated.
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        raise MuscleError(
            f"model '{spec}': its api_key_env must name an environment variable in capitals, such as "
            "VENDOR_API_KEY; the key itself stands in no file"
        )
    if not environment.get(name):
        raise MuscleError(f"model '{spec}': the environment variable {name} (its api_key_env) is not set")
    return environment[name]
