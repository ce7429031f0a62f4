"""Telling people: into the log for an installation without a channel, or into a list."""

from __future__ import annotations

import logging

from groundplane.ports import Notice

log = logging.getLogger("groundplane.notify")


class LogNotifier:
    """Writes each notice as one warning of the logger `groundplane.notify`."""

    async def send(self, notice: Notice) -> None:
        log.warning("%s: %s (%s)", notice.kind, notice.title, notice.text)


class MemoryNotifier:
    """Keeps the notices in `sent`."""

    def __init__(self) -> None:
        self.sent: list[Notice] = []

    async def send(self, notice: Notice) -> None:
        self.sent.append(notice)
