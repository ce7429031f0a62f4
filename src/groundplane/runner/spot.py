"""Whether the cloud takes this machine back: its metadata service asked again and again, in its published format.

Source: AWS EC2 user guide, spot instance interruption notices (`spot/instance-action`, IMDSv2); Azure scheduled events
for Linux virtual machines (api-version 2020-07-01, EventType Preempt); Google Compute Engine, handling preemption
(`instance/preempted`). Read 2026-11.
"""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document

METADATA_URL = "http://169.254.169.254"
PERIOD_S, TIMEOUT_S, TOKEN_S = 2.0, 2.0, 300.0
GOOGLE_NOTICE_S = 30.0
SIMULATED = "simulated:"


class SpotWatch:
    """Asks in a thread of its own. `notice` is a document with who says so, in a sentence, and the seconds left.

    `url` is where the metadata service answers, or `simulated:FILE`: a notice comes when that file is there.
    """

    def __init__(self, url: str = METADATA_URL, period_s: float = PERIOD_S) -> None:
        self._url, self._period_s = url, period_s
        self._closing = threading.Event()
        self._cloud = ""
        self._token: tuple[str, float] = ("", 0.0)
        self._name: str | None = None
        self.notice: Document | None = None
        self.trouble = ""

    def start(self) -> None:
        threading.Thread(target=self._watch, name="spot", daemon=True).start()

    def close(self) -> None:
        self._closing.set()

    def _watch(self) -> None:
        while self.notice is None:
            self.notice = self.ask()
            if self._closing.wait(self._period_s):
                return

    def ask(self) -> Document | None:
        """One question. Until a cloud is known, each is asked; who answers as its documents say is it."""
        if self._url.startswith(SIMULATED):
            there = Path(self._url[len(SIMULATED) :]).exists()
            return {"text": "simulated notice: the machine is taken back", "left_s": None} if there else None
        self.trouble = ""
        for cloud, ask in (("azure", self._azure), ("aws", self._aws), ("google", self._google)):
            if self._cloud in ("", cloud):
                try:
                    answered, notice = ask()
                except (OSError, ValueError, KeyError, TypeError) as error:
                    self.trouble = f"{cloud}: {error!r}"
                    continue
                if answered:
                    self._cloud = cloud
                    return notice
        self.trouble = self.trouble or "no metadata service answers as one of Azure, AWS or Google does"
        return None

    def _azure(self) -> tuple[bool, Document | None]:
        """Events name the machines they are about: those of its set are shown to each of them."""
        asks = {"Metadata": "true"}
        status, said = self._get("/metadata/scheduledevents?api-version=2020-07-01", asks)
        if status != 200:
            return False, None
        events = json.loads(said)["Events"]
        if self._name is None:
            found, name = self._get("/metadata/instance/compute/name?api-version=2021-02-01&format=text", asks)
            self._name = name.decode().strip() if found == 200 else ""
        for event in events:
            about = event.get("Resources") or []
            ours = not about or not self._name or self._name in about
            if event.get("EventType") == "Preempt" and event.get("EventStatus") in ("Scheduled", "Started") and ours:
                when = event.get("NotBefore") or ""
                return True, _notice("Azure", "evicts this machine", when, _left_s(when, "%a, %d %b %Y %H:%M:%S GMT"))
        return True, None

    def _aws(self) -> tuple[bool, Document | None]:
        token, until = self._token
        if time.monotonic() > until:
            status, said = self._get(
                "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(2 * int(TOKEN_S))}, "PUT"
            )
            if status != 200:
                return False, None
            token = said.decode()
            self._token = token, time.monotonic() + TOKEN_S
        asks = {"X-aws-ec2-metadata-token": token}
        status, said = self._get("/latest/meta-data/spot/instance-action", asks)
        if status == 404:
            return True, None
        if status != 200:
            self._token = "", 0.0
            return False, None
        action = json.loads(said)
        when = action["time"]
        return True, _notice("AWS", f"will {action['action']} this instance", when, _left_s(when, "%Y-%m-%dT%H:%M:%SZ"))

    def _google(self) -> tuple[bool, Document | None]:
        status, said = self._get("/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
        if status != 200 or said.strip() not in (b"TRUE", b"FALSE"):
            return False, None
        return True, _notice("Google Cloud", "preempts this instance", "", GOOGLE_NOTICE_S) if b"TRUE" in said else None

    def _get(self, path: str, headers: dict[str, str], method: str = "GET") -> tuple[int, bytes]:
        from http.client import HTTPConnection, HTTPException  # noqa: PLC0415 (only machines that may be taken away pay for it)

        host = self._url.split("://", 1)[1].rstrip("/")
        connection = HTTPConnection(host, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(2**20)
        except HTTPException as error:
            raise OSError(f"{path} is answered with what is no HTTP: {error!r}") from error
        finally:
            connection.close()


def _notice(cloud: str, what: str, when: str, left_s: float | None) -> Document:
    at = f" at {when}" if when else ""
    return {"text": f"{cloud} {what}{at}", "left_s": left_s}


def _left_s(text: str, layout: str) -> float | None:
    """Seconds until then, by this machine's clock; None without a time."""
    import calendar  # noqa: PLC0415

    return calendar.timegm(time.strptime(text, layout)) - time.time() if text else None
