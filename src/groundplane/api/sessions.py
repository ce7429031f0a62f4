"""Console sessions: a random token in the cookie, the key it stands for in this process's memory.

The cookie never holds the key: browsers send cookies to every port of a host, other people's local servers included.
Sessions end with the process, with the key (it is checked at every request), and after SESSION_S.
"""

from __future__ import annotations

import hashlib
import secrets
import time

COOKIE = "ground_session"
SESSION_S = 12 * 3600
SESSIONS_MAX = 1000


class Sessions:
    """Begins, opens and ends sessions. At SESSIONS_MAX the oldest makes room."""

    def __init__(self) -> None:
        self._sessions: dict[str, tuple[str, float]] = {}

    def seal(self, secret: str) -> str:
        """Begins a session: the token for a key's secret. Set it HttpOnly, SameSite=Strict, for SESSION_S."""
        while len(self._sessions) >= SESSIONS_MAX:
            self._sessions.pop(next(iter(self._sessions)))
        token = secrets.token_urlsafe(32)
        self._sessions[_digest(token)] = (secret, time.monotonic() + SESSION_S)
        return token

    def open(self, token: str) -> str:
        """The key's secret, or "" when the session is unknown or over."""
        secret, ends_at = self._sessions.get(_digest(token), ("", 0.0))
        if secret and time.monotonic() >= ends_at:
            self.end(token)
            return ""
        return secret

    def end(self, token: str) -> None:
        """Signs out. Twice is the same as once."""
        self._sessions.pop(_digest(token), None)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
