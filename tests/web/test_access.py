"""Who may ask: tokens, hosts, origins, cookies, sizes; each a mistake that another server was found with."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.web.conftest import TOKEN, Running
from voxloop.errors import UnknownRecord, UsageError
from voxloop.serving import tokens
from voxloop.workspace import Workspace

BEARER = {"authorization": f"Bearer {TOKEN}"}


def ask(server: Running, path: str = "/v1/models", method: str = "GET", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.request(method, server.url + path, headers=named, trust_env=False)


def test_a_token_is_asked_for_on_loopback_too(server: Running) -> None:
    for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {TOKEN}x"}, {"cookie": "a=b"}):
        refused = ask(server, **wrong)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert ask(server, **BEARER).status_code == 200
    # A token in an address would stand in logs and histories.
    assert ask(server, f"/v1/models?token={TOKEN}&api_key={TOKEN}").status_code == 401


def test_health_says_ready_to_everybody_and_more_to_few(server: Running) -> None:
    assert ask(server, "/health").json() == {"status": "ready"}
    assert ask(server, "/health", **BEARER).json()["model"].startswith("sha256-")
    listener = tokens.add(server.ws, "ann", ["listen"])
    assert ask(server, "/health", authorization=f"Bearer {listener.secret}").json() == {"status": "ready"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8321", "127.0.0.1.evil.example", "", "localhost@evil"])
def test_a_name_that_was_made_to_point_here_is_refused(server: Running, host: str) -> None:
    refused = ask(server, **BEARER, host=host)
    assert refused.status_code == 400
    assert "host" in refused.text.lower()


def test_loopback_names_are_answered(server: Running) -> None:
    port = server.url.rpartition(":")[2]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST", "localhost."):
        assert ask(server, **BEARER, host=host).status_code == 200


def test_a_link_signs_a_browser_in_once(server: Running) -> None:
    issued = tokens.add(server.ws, "eve", ["listen", "review"])
    with httpx.Client(base_url=server.url, trust_env=False) as browser:
        welcomed = browser.get("/login", params={"code": issued.code})
        assert welcomed.status_code == 200
        cookie = welcomed.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert issued.secret not in welcomed.headers["set-cookie"]
        assert browser.get("/v1/models").status_code == 200
        assert httpx.get(f"{server.url}/login?code={issued.code}", trust_env=False).status_code == 403
        tokens.revoke(server.ws, "eve")
        assert browser.get("/v1/models").status_code == 401
        assert ask(server, authorization=f"Bearer {issued.secret}").status_code == 401


def test_other_sites_cannot_use_a_browsers_cookie(server: Running) -> None:
    code = tokens.link(server.ws)
    with httpx.Client(base_url=server.url, trust_env=False) as browser:
        browser.get("/login", params={"code": code})
        own = {"origin": server.url, "sec-fetch-site": "same-origin"}
        for headers, status in (
            (own, 204),
            ({"sec-fetch-site": "same-origin"}, 204),
            ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, 403),
            ({"origin": f"{server.url}.evil.example"}, 403),  # compared whole, not by how it begins
            ({"origin": "null"}, 403),
            ({"sec-fetch-site": "cross-site"}, 403),  # `no-cors` names no origin
            ({}, 403),
        ):
            browser.get("/login", params={"code": tokens.link(server.ws)})
            assert browser.post("/logout", headers=headers).status_code == status, headers


def test_only_origins_that_are_named_are_shared_with(server: Running) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for origin, status in (("app://obsidian.md", 204), ("app://obsidian.md.evil", 401), ("https://evil.example", 401)):
        said = httpx.options(f"{server.url}/v1/models", headers=asked | {"origin": origin}, trust_env=False)
        assert said.status_code == status
        assert said.headers.get("access-control-allow-origin") == (origin if status == 204 else None)
    shared = ask(server, **BEARER, origin="app://obsidian.md")
    assert shared.headers["access-control-allow-origin"] == "app://obsidian.md"
    assert shared.headers["vary"] == "Origin"


def test_every_answer_bears_the_headers_that_keep_pages_apart(server: Running) -> None:
    for path, headers in (("/health", {}), ("/v1/models", {}), ("/nowhere", BEARER), ("/login?code=x", {})):
        said = ask(server, path, **headers)
        assert said.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "frame-ancestors 'none'" in said.headers["content-security-policy"]
        assert said.headers["x-content-type-options"] == "nosniff"
        assert said.headers["referrer-policy"] == "no-referrer"
        assert said.headers["x-request-id"].startswith("req_")


def test_a_request_that_is_too_large_is_refused_before_it_is_kept(server: Running) -> None:
    large = b"x" * (2 << 20)
    announced = httpx.post(f"{server.url}/v1/audio/transcriptions", content=large, headers=BEARER, trust_env=False)
    assert announced.status_code == 413
    assert announced.json()["error"]["code"] == "file_too_large"

    def chunks() -> Iterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        for _ in range(4):
            yield b"x" * (1 << 19)

    form = BEARER | {"content-type": "multipart/form-data; boundary=b"}
    unannounced = httpx.post(f"{server.url}/v1/audio/transcriptions", content=chunks(), headers=form, trust_env=False)
    assert unannounced.status_code == 413
    assert "serve_max_upload_mb" in unannounced.json()["error"]["message"]


def test_scopes_allow_what_they_name(server: Running) -> None:
    reviewer = tokens.add(server.ws, "rita", ["review"])
    refused = ask(server, authorization=f"Bearer {reviewer.secret}")
    assert refused.status_code == 403
    assert "needs a token of scope listen; yours has review" in refused.json()["error"]["message"]
    watcher = tokens.add(server.ws, "prometheus", ["metrics"])
    told = ask(server, "/metrics", authorization=f"Bearer {watcher.secret}")
    assert 'voxloop_http_requests_total{method="GET",route="/v1/models",status="403"}' in told.text
    assert ask(server, "/metrics").status_code == 401


def test_tokens_are_named_once_and_revoked_once(workspace: Workspace) -> None:
    with pytest.raises(UsageError, match="there is no scope 'lisen'; did you mean listen"):
        tokens.add(workspace, "ann", ["lisen"])
    issued = tokens.add(workspace, "ann")
    with pytest.raises(UsageError, match="ann has a token already"):
        tokens.add(workspace, "ann")
    client = tokens.by_secret(workspace, issued.secret)
    assert client is not None
    assert (client.name, client.may("listen"), client.may("review")) == ("ann", True, False)
    assert tokens.still_valid(workspace, client)
    tokens.revoke(workspace, "ann")
    assert not tokens.still_valid(workspace, client)
    with pytest.raises(UnknownRecord, match="no token is of 'ann'; there are none"):
        tokens.revoke(workspace, "ann")
    assert tokens.add(workspace, "ann").secret != issued.secret  # the name is free again


def test_the_administrators_token_is_its_owners_alone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokens.administrators(workspace)
    assert len(made) >= 43
    assert tokens.administrators(workspace) == made
    file = tokens.token_file(workspace)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert list(file.parent.iterdir()) == [file]
    monkeypatch.setenv("VOXLOOP_TOKEN", "given")
    assert tokens.administrators(workspace) == "given"


def test_no_secret_is_in_the_catalog_or_a_backup(workspace: Workspace, tmp_path: Path) -> None:
    from voxloop.maintenance.backups import backup

    secrets = [tokens.administrators(workspace), (issued := tokens.add(workspace, "ann")).secret, issued.code]
    backup(workspace, tmp_path / "copy")
    kept = b"".join(file.read_bytes() for file in (tmp_path / "copy").rglob("*") if file.is_file())
    assert kept
    assert [secret for secret in secrets if secret.encode() in kept] == []
