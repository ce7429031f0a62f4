"""OpenAI's description of its API, played through the gateway for a moment; `make soak` plays it for longer."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.gateway.description import of_the_client, play

EXAMPLES = 4


async def test_what_openais_description_allows_and_forbids_is_answered_as_it_says() -> None:
    """GROUND_OPENAPI names the published openapi.json, to be played in place of the client's types."""
    published = os.environ.get("GROUND_OPENAPI")
    document = json.loads(Path(published).read_text()) if published else of_the_client()
    played = await play(document, examples=EXAMPLES)
    assert not played.broken, "\n".join(played.broken)
    forwarded = {path for path, operations in played.document["paths"].items() if "post" in operations}
    assert len(forwarded) == 11
    assert set(played.relayed) == forwarded, "a path whose requests were all refused was not tried"
    assert {path for path, status in played.answered if 400 <= status < 500} >= {"/chat/completions", "/embeddings"}
    assert set(played.events) == {"/chat/completions", "/completions", "/responses"}
    assert played.answered["/models", 200] and played.answered["/models/{model}", 200]
