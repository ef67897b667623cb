"""Real servers on loopback that remotes of DVC lie on, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from projects import Project

S3 = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""

WEB = """
import http.server, sys, threading
server = http.server.ThreadingHTTPServer(
    ("127.0.0.1", 0),
    lambda *arguments: http.server.SimpleHTTPRequestHandler(*arguments, directory=sys.argv[1]),
)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""

SSH = """
import asyncio, asyncssh, sys

class Anybody(asyncssh.SSHServer):
    def begin_auth(self, username):
        return False

async def main():
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Anybody, server_host_keys=[key], sftp_factory=True
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""

PROXY = """
import socket, sys, threading
target, fault, after, times = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
lock, left = threading.Lock(), [times]
listening = socket.create_server(("127.0.0.1", 0))
forever = threading.Event()

def is_to_fail(head):
    if sys.argv[5].encode() not in head:
        return False
    with lock:
        left[0] -= 1
        return left[0] >= 0

def pump(source, sink):
    while data := source.recv(65536):
        sink.sendall(data)

def answer(client):
    # A request of a connection, which is closed after it.
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        data = client.recv(65536)
        if not data:
            return
        head += data
    head = head.replace(b"\\r\\n", b"\\r\\nConnection: close\\r\\n", 1)
    failing = is_to_fail(head)
    if failing and fault.isdigit():
        client.sendall(b"HTTP/1.1 %s No\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n"
                       % fault.encode())
        return
    with socket.create_connection(("127.0.0.1", target)) as server:
        threading.Thread(target=copy_on, args=(client, server), daemon=True).start()
        server.sendall(head)
        answered, body = b"", 0
        while b"\\r\\n\\r\\n" not in answered:
            answered += server.recv(65536)
        start, _, rest = answered.partition(b"\\r\\n\\r\\n")
        if failing and fault == "stall" and after < 0:
            forever.wait()
        client.sendall(start + b"\\r\\n\\r\\n")
        rest = rest or server.recv(65536)
        while rest:
            if failing and fault == "flip":
                rest = bytes([rest[0] ^ 1]) + rest[1:]
            if failing and fault in ("stall", "cut") and body + len(rest) > after:
                client.sendall(rest[: after - body])
                if fault == "stall":
                    forever.wait()
                return
            client.sendall(rest)
            body += len(rest)
            rest = server.recv(65536)

def copy_on(source, sink):
    try:
        pump(source, sink)
    except OSError:
        pass

def serve(client):
    with client:
        try:
            answer(client)
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

def accept():
    while True:
        client, _ = listening.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()

threading.Thread(target=accept, daemon=True).start()
print(listening.getsockname()[1], flush=True)
sys.stdin.read()
"""
"""A faulty way to a web server: port, fault, bytes of the body before it, how often, and what the
requests that it befalls have in their head. Faults: ``stall``, ``cut``, ``flip``, or a status."""

RELAY = """
import socket, sys, threading
target, fault, after, times = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
lock, left = threading.Lock(), [times]
listening = socket.create_server(("127.0.0.1", 0))
forever = threading.Event()

def pump(source, sink, most=None):
    passed = 0
    try:
        while data := source.recv(65536):
            if most is not None and passed + len(data) > most:
                sink.sendall(data[: most - passed])
                if fault == "stall":
                    forever.wait()
                break
            sink.sendall(data)
            passed += len(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

def serve(client):
    with lock:
        left[0] -= 1
        most = after if left[0] >= 0 else None
    with client, socket.create_connection(("127.0.0.1", target)) as server:
        threading.Thread(target=pump, args=(client, server), daemon=True).start()
        pump(server, client, most)

def accept():
    while True:
        client, _ = listening.accept()
        threading.Thread(target=serve, args=(client,), daemon=True).start()

threading.Thread(target=accept, daemon=True).start()
print(listening.getsockname()[1], flush=True)
sys.stdin.read()
"""
"""A faulty way to any server: port, fault (``stall`` or ``cut``), bytes of the answers of a
connection before it, and how many connections it befalls."""

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=tester/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)
"""The server looks at who asks, and not at the signature."""


@contextlib.contextmanager
def served(code: str, folder: Path, *arguments: str) -> Iterator[tuple[int, Path]]:
    """Run a server; give its port, and the file that it logs requests to."""
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            env={**os.environ, **CREDENTIALS},
        )
        assert process.stdin
        assert process.stdout
        try:
            port = next(line for line in process.stdout if line.strip().isdigit())
            yield int(port), log
        finally:
            process.stdin.close()
            process.wait(timeout=30)
            process.stdout.close()


@dataclass(frozen=True)
class Bucket:
    """A bucket of an S3 server, seen over plain HTTP."""

    port: int
    log: Path
    name: str = "data"

    @property
    def endpoint(self) -> str:
        """The address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, key: str = "", data: bytes | None = None, **headers: str
    ) -> bytes:
        """Ask for an object, or for the bucket; the answer must be good."""
        url = f"{self.endpoint}/{self.name}/{key}".rstrip("/")
        headers |= {"Authorization": AUTHORIZATION, "Content-Type": "application/octet-stream"}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        asked = urllib.request.Request(url, data=data, method=method, headers=names)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            got: bytes = answer.read()
        return got

    def requests(self) -> list[str]:
        """Return the requests that the server has logged: ``GET /data?…``."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line.partition('"')[2].partition(" HTTP")[0] for line in lines if " HTTP/" in line]


def run(*arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run ``dvc-integrity ... --json`` in the current folder: status, document, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc_integrity", *arguments, "--json"],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
        env={**os.environ, **CREDENTIALS},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def statuses(report: dict[str, Any]) -> dict[str, str]:
    """Return the status of each finding of a report by its path."""
    return {each["path"]: each["status"] for each in report["findings"]}


def push(project: Project, *, expect: int = 0) -> None:
    """Push with the real program: it brings an event loop and a session of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "push"],
        capture_output=True,
        check=False,
        text=True,
        cwd=project.root,
        env={**os.environ, **CREDENTIALS},
    )
    assert expect == done.returncode, done.stderr
