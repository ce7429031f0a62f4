"""The console as a browser without JavaScript meets it: real pages from a real control plane."""

from __future__ import annotations

import os
import re
from pathlib import Path

import httpx
import pytest
from tests.console.plane import HOSTILE, Plane, poll

from groundplane.console.web import HEADERS, NAVIGATION
from groundplane.domain.run import RunStatus
from groundplane.identity import Role

PAGES = [href for _, href, _ in NAVIGATION]


@pytest.fixture(scope="module")
def run_id(plane: Plane) -> str:
    """A run whose owner, command and log try to be markup."""
    run_id = plane.submit(
        "hostile", f"echo '{HOSTILE.replace(chr(39), chr(34))}'; printf 'caf\\303\\251 \\377\\n'", owner=HOSTILE
    )
    plane.wait(run_id, RunStatus.SUCCEEDED)
    return run_id


def test_the_address_alone_leads_to_the_sign_in_and_back(plane: Plane) -> None:
    visitor = plane.visitor()
    page = visitor.get("/")
    assert page.url.path == "/console/login"
    wanted = visitor.get("/console/runs?status=active")
    assert dict(wanted.url.params)["next"] == "/console/runs?status=active"
    signed_in = visitor.post("/console/login", data={"key": plane.key, "next": "/console/runs?status=active"})
    assert signed_in.url.path == "/console/runs"


@pytest.mark.parametrize(
    "path", [*PAGES, "/console/runs/x", "/console/runs/x/log", "/console/models/x@1", "/console/zzz"]
)
def test_no_page_opens_without_a_session(plane: Plane, path: str) -> None:
    answer = httpx.get(plane.url + path)
    assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (303, "/console/login")
    assert not answer.content


@pytest.mark.parametrize("path", [*PAGES, "/console/login", "/console/zzz"])
def test_every_page_carries_the_content_policy_and_keeps_out_of_caches(plane: Plane, path: str) -> None:
    answer = plane.browser().get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "'unsafe" not in answer.headers["content-security-policy"]


def test_the_cookie_is_for_the_consoles_own_pages_alone(plane: Plane) -> None:
    answer = httpx.post(f"{plane.url}/console/login", data={"key": plane.key}, headers={"Origin": plane.url})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Path=/console" in cookie
    assert plane.key not in cookie


def test_a_wrong_key_is_told_so_and_gets_no_session(plane: Plane) -> None:
    answer = httpx.post(f"{plane.url}/console/login", data={"key": "gp-admin-wrong"}, headers={"Origin": plane.url})
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers
    assert "gp-admin-wrong" not in answer.text


def test_a_callers_key_opens_no_console(plane: Plane) -> None:
    secret = plane.key_for(Role.CALLER)
    answer = httpx.post(f"{plane.url}/console/login", data={"key": secret}, headers={"Origin": plane.url})
    assert answer.status_code == 401
    assert "calls models" in answer.text


def test_signing_out_ends_the_session_on_the_server(plane: Plane) -> None:
    visitor = plane.browser()
    cookies = dict(visitor.cookies)
    assert visitor.post("/console/logout").url.path == "/console/login"
    assert httpx.get(f"{plane.url}/console", cookies=cookies).status_code == 303


def test_a_revoked_key_ends_its_sessions_at_once(plane: Plane) -> None:
    made = plane.client.create_key(name="gone", project="vision", owner="dana", role=Role.VIEWER)
    visitor = plane.browser(made.secret)
    assert visitor.get("/console/runs").url.path == "/console/runs"
    plane.client.revoke_key(made.key.id, "left the team")
    assert visitor.get("/console/runs").url.path == "/console/login"


@pytest.mark.parametrize(
    "target",
    [
        "https://elsewhere.example/",
        "//elsewhere.example",
        "/v1/runs",
        "/console/../v1",
        "/console/%2e%2e/v1",
        "/console//elsewhere.example",
        "/console\\..\\v1",
        "/consoles",
        "/console/runs\n",
    ],
)
def test_no_redirect_leads_away_from_the_console(plane: Plane, target: str) -> None:
    answer = httpx.post(
        f"{plane.url}/console/login", data={"key": plane.key, "next": target}, headers={"Origin": plane.url}
    )
    assert answer.headers["location"] == "/console"


@pytest.mark.parametrize("headers", [{"Origin": "https://elsewhere.example"}, {}, {"Sec-Fetch-Site": "same-site"}])
def test_a_form_on_another_site_changes_nothing(plane: Plane, headers: dict[str, str]) -> None:
    run_id = plane.submit("wanted", "sleep 60")
    cookies = dict(plane.browser().cookies)
    answer = httpx.post(
        f"{plane.url}/console/runs/{run_id}/stop", data={"reason": "x"}, cookies=cookies, headers=headers
    )
    assert answer.status_code == 403
    assert plane.client.run(run_id).run.stop_requested is None
    plane.client.stop_run(run_id, "test over")


def test_a_viewer_sees_what_a_viewer_may_and_no_more(plane: Plane) -> None:
    visitor = plane.browser(plane.key_for(Role.VIEWER))
    assert re.findall(
        r'<a href="(/console/?\w*)"[^>]*>(\w+)</a>', visitor.get("/console").text.partition("</nav>")[0]
    ) == [
        ("/console", "Overview"),
        ("/console/requests", "Requests"),
        ("/console/recon", "Recon"),
        ("/console/sizing", "Sizing"),
        ("/console/plans", "Plans"),
        ("/console/approvals", "Approvals"),
        ("/console/runs", "Runs"),
        ("/console/experiments", "Experiments"),
        ("/console/queue", "Queue"),
        ("/console/dev", "Dev"),
        ("/console/nodes", "Nodes"),
        ("/console/models", "Models"),
        ("/console/gates", "Gates"),
        ("/console/evaluations", "Evaluations"),
        ("/console/batches", "Batches"),
        ("/console/scans", "Scans"),
        ("/console/datasets", "Datasets"),
        ("/console/lineage", "Lineage"),
        ("/console/storage", "Storage"),
        ("/console/endpoints", "Endpoints"),
        ("/console/costs", "Costs"),
        ("/console/policy", "Policy"),
    ]
    refused = visitor.get("/console/audit")
    assert refused.status_code == 403
    assert "viewer" in refused.text


@pytest.mark.parametrize("path", PAGES)
def test_every_page_answers_the_admin(plane: Plane, run_id: str, path: str) -> None:
    answer = plane.browser().get(path)
    assert answer.status_code == 200
    assert "<h1>" in answer.text


def test_what_arrives_and_can_get_no_sha256_says_why(plane: Plane, tmp_path: Path) -> None:
    source = tmp_path / "w.bin"
    source.write_bytes(os.urandom(5000))
    artifact = plane.client.push(source, name="rotten", project="vision")
    [piece] = plane.client.pieces(artifact.id, "w.bin").pieces
    pack = plane.home / "store" / "packs" / piece.pack
    pack.chmod(0o644)
    with pack.open("r+b") as file:
        file.seek(piece.offset)
        file.write(bytes(8))
    arrival = plane.client.arrive(source, name="rotten-again", project="vision")
    poll(lambda: any(each.problem for each in plane.client.arrivals()), "the loop to have looked")
    alert = re.search(r'<p role="alert"><strong>rotten-again</strong>.*', plane.browser().get("/console/storage").text)
    assert alert is not None
    assert f"piece {piece.blake3} has changed" in alert[0]
    assert plane.client.push(source, name="healed", project="vision").files == artifact.files
    assert plane.client.artifact(arrival.id).files == artifact.files
    assert "is arriving" not in plane.browser().get("/console/storage").text


def test_the_signing_key_stands_beside_those_before_it(plane: Plane) -> None:
    rotated = plane.client.rotate_signing_key("a year has passed")
    shown = plane.browser().get("/console/keys").text
    assert f'signed by <span class="id">{rotated.key_id}</span>' in shown
    assert f'Trusted as well: <span class="id">{rotated.before}</span>' in shown
    assert f"ground_signing_keys {len(plane.client.public_keys().keys)}.0" in plane.client.metrics()


def test_markup_in_names_commands_and_logs_is_text(plane: Plane, run_id: str) -> None:
    visitor = plane.browser()
    for path in ("/console", "/console/runs", f"/console/runs/{run_id}", "/console/audit", "/console/costs?by=owner"):
        page = visitor.get(path).text
        assert "<img" not in page
        assert page.count("<script") == 1  # the console's own file
    assert "&lt;script&gt;" in visitor.get(f"/console/runs/{run_id}").text


def test_a_log_of_any_bytes_is_readable(plane: Plane, run_id: str) -> None:
    answer = plane.browser().get(f"/console/runs/{run_id}/log")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert "café \ufffd\n" in answer.text
    assert answer.headers["x-ground-complete"] == "true"


def test_a_long_log_opens_at_its_end_and_can_be_read_from_the_beginning(plane: Plane) -> None:
    run_id = plane.submit("chatty", "seq 1 60000")
    plane.wait(run_id, RunStatus.SUCCEEDED)
    visitor = plane.browser()
    page = visitor.get(f"/console/runs/{run_id}").text
    assert "60000\n" in page
    assert "From the beginning" in page
    seen, where = "", f"/console/runs/{run_id}?attempt=1&offset=0"
    while where:
        page = visitor.get(where).text
        piece = re.search(r'<pre class="log"[^>]*data-offset="(\d+)"[^>]*>(.*?)</pre>', page, re.DOTALL)
        assert piece is not None
        seen += piece[2]
        where = f"/console/runs/{run_id}?attempt=1&offset={piece[1]}" if piece[2] else ""
    assert seen.split() == [str(number) for number in range(1, 60_001)]


def test_a_run_page_says_where_the_run_is_and_why(plane: Plane) -> None:
    run_id = plane.submit("broken", "exit 3")
    plane.wait(run_id, RunStatus.FAILED)
    page = plane.browser().get(f"/console/runs/{run_id}").text
    assert "command-failed" in page
    assert "exit 3" in page
    assert "broken failed" in plane.browser().get("/console").text


def test_stopping_a_run_asks_why_and_the_trail_remembers(plane: Plane) -> None:
    run_id = plane.submit("endless", "sleep 60")
    visitor = plane.browser()
    page = visitor.post(f"/console/runs/{run_id}/stop", data={"reason": f"no longer needed {HOSTILE}"})
    assert page.url.path == f"/console/runs/{run_id}"
    plane.wait(run_id, RunStatus.STOPPED)
    trail = visitor.get("/console/audit", params={"kind": "run", "id": run_id}).text
    assert "run.stop" in trail
    assert "no longer needed &lt;script&gt;" in trail


def test_checking_the_trail_says_how_much_was_checked(plane: Plane, run_id: str) -> None:
    page = plane.browser().post("/console/audit/verify").text
    assert re.search(r"<strong>Whole.</strong> \d+ events checked", page)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/console/runs/run-none", 404),
        ("/console/models/none@1", 404),
        ("/console/models/..%2f..%2fetc", 404),
        ("/console/endpoints/none", 404),
        ("/console/static/..%2fweb.py", 404),
        ("/console/runs?status=nonsense", 422),
        ("/console/costs?by=nonsense", 422),
        ("/console/costs?days=x", 422),
        ("/console/nowhere", 404),
    ],
)
def test_a_wrong_address_gets_a_page_that_says_what_is_wrong(plane: Plane, path: str, status: int) -> None:
    answer = plane.browser().get(path)
    assert answer.status_code == status
    assert "<h1>" in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", ["/console", "/console/runs"])
def test_a_slash_at_the_end_does_no_harm(plane: Plane, path: str) -> None:
    assert plane.browser().get(f"{path}/").url.path == path


def test_an_error_page_keeps_the_way_back(plane: Plane) -> None:
    assert "Sign out" in plane.browser().get("/console/nowhere").text


def test_pages_reload_by_themselves_without_a_script(plane: Plane) -> None:
    assert '<noscript><meta http-equiv="refresh"' in plane.browser().get("/console").text
