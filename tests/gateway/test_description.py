"""OpenAI's description of its API, played through the gateway for a moment; `make soak` plays it for longer."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.gateway.description import of_the_client, play

EXAMPLES = 3
NEWER = {"/responses", "/audio/speech"}
"""What an older published description may lack; the client's types have it."""
PUBLISHED = pytest.param("published", NEWER, marks=pytest.mark.needs("openai-description"))


@pytest.mark.parametrize(("origin", "lacking"), [("client", set()), PUBLISHED])
async def test_what_openais_description_allows_and_forbids_is_answered_as_it_says(
    origin: str, lacking: set[str]
) -> None:
    described = of_the_client() if origin == "client" else json.loads(Path(os.environ["GROUND_OPENAPI"]).read_text())
    played = await play(described, examples=EXAMPLES)
    assert not played.broken, "\n".join(played.broken)
    forwarded = {path for path, operations in played.document["paths"].items() if "post" in operations}
    assert len(forwarded | lacking) == 11
    assert set(played.relayed) == forwarded, "a path whose requests were all refused was not tried"
    assert {path for path, status in played.answered if 400 <= status < 500} >= {"/chat/completions", "/embeddings"}
    assert set(played.events) == {"/chat/completions", "/completions", "/responses"} & forwarded
    assert played.answered["/models", 200] and played.answered["/models/{model}", 200]
