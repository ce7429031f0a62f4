"""The official OpenAI client for Node, unmodified: answers, streams, tools, embeddings, errors and retries."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from tests.gateway.harness import SECRET, Exchange, MockUpstream, completion, key, route, running, well_behaved

_SCRIPT = """
const OpenAI = require('openai');
(async () => {
  const [baseURL, apiKey] = process.argv.slice(1);
  const client = new OpenAI({ baseURL, apiKey, maxRetries: 2 });
  const out = {};
  const messages = [{ role: 'user', content: 'hi' }];
  const tools = [{ type: 'function', function: { name: 'f', parameters: { type: 'object', properties: {} } } }];
  const whole = await client.chat.completions.create({ model: 'tiny', messages, tools });
  out.whole = whole.choices[0].message.content;
  out.text = '';
  const stream = await client.chat.completions.create({ model: 'tiny', messages, stream: true });
  for await (const chunk of stream) out.text += chunk.choices[0].delta.content || '';
  out.tool = (await client.chat.completions.create({ model: 'tiny', messages, user: 'tool' }))
    .choices[0].message.tool_calls[0].function.name;
  const embedded = await client.embeddings.create({ model: 'tiny', input: 'hi', encoding_format: 'float' });
  out.embedding = embedded.data[0].embedding;
  out.models = (await client.models.list()).data.map((one) => one.id);
  out.retried = (await client.chat.completions.create({ model: 'tiny', messages, user: 'twice' })).object;
  try { await client.chat.completions.create({ model: 'huge', messages }); } catch (error) {
    out.error = [error.constructor.name, error.status, error.code, typeof error.requestID];
  }
  console.log(JSON.stringify(out));
})();
"""


@pytest.mark.needs("node-openai")
async def test_the_unmodified_node_client_works(tmp_path: Path, upstream: MockUpstream) -> None:
    failed = []

    async def behave(exchange: Exchange) -> None:
        request = json.loads(exchange.seen.body)
        if exchange.seen.path == "/v1/embeddings":
            item = {"object": "embedding", "index": 0, "embedding": [0.5, -1.25]}
            await exchange.json({"object": "list", "data": [item], "model": "tiny", "usage": {"prompt_tokens": 1}})
        elif request.get("user") == "tool":
            answer = completion()
            call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            await exchange.json(
                {**answer, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
            )
        elif request.get("user") == "twice" and not failed:
            failed.append(True)
            await exchange.json({"error": {"message": "busy"}}, status=503)
        else:
            await well_behaved(exchange)

    upstream.behave = behave
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        process = await asyncio.create_subprocess_exec(
            shutil.which("node") or "node", "-e", _SCRIPT, bench.base_url, SECRET, stdout=asyncio.subprocess.PIPE
        )
        said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert json.loads(said) == {
        "whole": "hello there",
        "text": "one two three four five",
        "tool": "f",
        "embedding": [0.5, -1.25],
        "models": ["tiny"],
        "retried": "chat.completion",
        "error": ["NotFoundError", 404, "model_not_found", "string"],
    }
    assert json.loads(upstream.seen[0].body)["tools"][0]["function"]["name"] == "f"
