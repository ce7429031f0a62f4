"""Dev environments: attach, type, look, let go; what one holds; the way in over SSH."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.dev import DevInfo, DevUse, SshConfig
from groundplane.identity import Actor, Permission
from groundplane.wire.dev import Attached, AttachRequest

environments = Router(prefix="/v1", tags=["dev"])
router = Router(prefix="/v1/runs/{run_id}", tags=["dev"])
Writer = Annotated[Actor, requires(Permission.RUNS_WRITE)]
_FRAMES: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}


@environments.get("/dev")
async def list_dev(app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_READ)]) -> list[DevUse]:
    """Dev environments that are not over, of the projects that the caller sees: where, since when, idle how long."""
    found: list[DevUse] = await app.dev.environments(actor)
    return found


@router.post("/attach")
async def attach(run_id: str, body: AttachRequest, app: Ground, actor: Writer) -> Attached:
    """Opens a connection to a shell, or to a port, of a dev environment. A shell that is there already is shared."""
    return Attached(id=await app.dev.attach(actor, run_id, body.wish()))


@router.get("/attach/{name}", response_class=StreamingResponse, responses=_FRAMES)
async def read_attached(run_id: str, name: str, app: Ground, actor: Writer) -> Response:
    """Frames as they come, until it is over; going away detaches."""
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    frames = app.dev.output(actor, run_id, name)
    return StreamingResponse(frames, media_type="application/octet-stream", headers=headers)


@router.post("/attach/{name}", status_code=204)
async def write_attached(run_id: str, name: str, request: Request, app: Ground, actor: Writer) -> None:
    """Frames for the other end: what was typed, a new size."""
    await app.dev.send(actor, run_id, name, await request.body())


@router.delete("/attach/{name}", status_code=204)
async def detach(run_id: str, name: str, app: Ground, actor: Writer) -> None:
    """Lets go; the shell goes on. Twice is the same as once."""
    await app.dev.detach(actor, run_id, name)


@router.get("/dev")
async def show_dev(run_id: str, app: Ground, actor: Writer) -> DevInfo:
    """Sessions, folder, and Jupyter's port and token."""
    found: DevInfo = await app.dev.info(actor, run_id)
    return found


@router.get("/ssh-config")
async def show_ssh_config(run_id: str, app: Ground, actor: Writer) -> SshConfig:
    """A block for an ssh client's configuration, for VS Code and others."""
    found: SshConfig = await app.dev.ssh_config(actor, run_id)
    return found
