"""Client secrets: keys that open live sessions for a while, for pages and apps that must not know a token.

They are kept in memory, as hashes: a server that starts anew knows none of those it gave before.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxloop.serving.tokens import Client
from voxloop.web.problems import Problem

PREFIX = "ek_"  # as OpenAI's begin
SHORTEST_S, USUAL_S, LONGEST_S = 10, 600, 7200  # OpenAI's bounds
MOST = 1000  # that one token may have at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientSecret:
    """Who opens a session with a secret, and how that session is configured at first."""

    client: Client
    session: Mapping[str, Any]
    expires: float  # seconds since the epoch


class ClientSecrets:
    """The secrets that a running server has given. Safe to be used from many threads."""

    def __init__(self) -> None:
        self._known: dict[str, ClientSecret] = {}
        self._lock = threading.Lock()

    def make(self, client: Client, session: Mapping[str, Any], seconds: int = USUAL_S) -> tuple[str, ClientSecret]:
        """Make a secret that opens sessions in a client's name. Raises Problem for too many, or a wrong time."""
        if not SHORTEST_S <= seconds <= LONGEST_S:
            raise Problem(
                400,
                f"expires_after.seconds is {seconds}: it must be from {SHORTEST_S} to {LONGEST_S}",
                code="invalid_value",
                param="expires_after.seconds",
            )
        value = PREFIX + secrets.token_urlsafe(32)
        listener = Client(name=client.name, scopes=frozenset({"listen"}), token=client.token)
        made = ClientSecret(client=listener, session=session, expires=time.time() + seconds)
        with self._lock:
            self._known = {key: one for key, one in self._known.items() if one.expires > time.time()}
            if sum(one.client.token == client.token for one in self._known.values()) >= MOST:
                raise Problem(429, f"this token has {MOST} client secrets already", code="rate_limit_exceeded")
            self._known[_hash(value)] = made
        return value, made

    def find(self, value: str) -> ClientSecret | None:
        """What a secret opens; None: nothing, or no longer."""
        with self._lock:
            found = self._known.get(_hash(value))
        return found if found is not None and found.expires > time.time() else None


def _hash(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()
