"""A local endpoint that serves model repositories the way the Hugging Face Hub does, and counts what it is asked."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@dataclass
class HubServer:
    """Repositories by name: their commits, and which of them is `main`."""

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    main: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)  # "GET /path"

    def push(self, name: str, files: dict[str, bytes]) -> str:
        """A new commit on a repository's `main`; its id."""
        told = "".join(f"{path} {hashlib.sha1(data).hexdigest()}\n" for path, data in sorted(files.items()))
        commit = hashlib.sha1(f"{name}\n{told}".encode()).hexdigest()
        self.commits.setdefault(name, {})[commit] = files
        self.main[name] = commit
        return commit

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request."""
        parts = unquote(urlparse(path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 6:
            name, what, revision = "/".join(parts[2:4]), parts[4], parts[5]
            found = self._files(name, revision)
            if found and what == "revision":
                siblings = [{"rfilename": file} for file in found[1]]
                return _json({"id": name, "modelId": name, "sha": found[0], "siblings": siblings, "tags": []})
            if found and what == "tree":
                rows = [
                    {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for file, data in found[1].items()
                ]
                return _json(rows)
        if len(parts) >= 5 and parts[2] == "resolve":
            found, file = self._files("/".join(parts[:2]), parts[3]), "/".join(parts[4:])
            if found and file in found[1]:
                data = found[1][file]
                return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": found[0]}, data
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        commit = self.main.get(name, "") if revision == "main" else revision
        files = self.commits.get(name, {}).get(commit)
        return None if files is None else (commit, files)


def _json(value: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def serving() -> Iterator[HubServer]:
    hub = HubServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = _reply

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield hub
        finally:
            server.shutdown()
