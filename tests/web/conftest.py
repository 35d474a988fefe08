"""A running server on loopback, over a workspace of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from benchmarks import checkpoints
from fastapi import FastAPI

from tests.web import node_client
from voxloop.pipeline import open_loop
from voxloop.web.access import LOOPBACK, Admission
from voxloop.web.app import application
from voxloop.workspace import Workspace

CACHE = checkpoints.cache()  # before a fixture takes the variable that names it out of the environment
TOKEN = "a token for tests"


@dataclass(frozen=True)
class Running:
    """Where a server answers, and the workspace behind it."""

    url: str
    token: str
    ws: Workspace
    app: FastAPI


@contextmanager
def served(
    ws: Workspace, wyoming: socket.socket | None = None, port: int = 0, hosts: Sequence[str] = ()
) -> Iterator[Running]:
    """The application as `voxloop serve` runs it, in a thread of this process."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", port))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        admission = Admission(token=TOKEN, hosts=(*LOOPBACK, *hosts), origins=("app://obsidian.md",), max_body=1 << 20)
        app = application(ws, admission, wyoming)
        running = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        app.state.ending = lambda: running.should_exit
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not running.started:
            assert thread.is_alive()
            thread.join(0.01)
        try:
            yield Running(url, TOKEN, ws, app)
        finally:  # else a test that fails leaves its server, with a model, to those that follow
            running.should_exit = True
            thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    """A server with the starter."""
    with open_loop(tmp_path / "served", create=True) as ws, served(ws) as running:
        yield running


@pytest.fixture(scope="session")
def openai_for_node() -> Path:
    """A folder in which Node finds the `openai` package."""
    return node_client.installed(CACHE)
