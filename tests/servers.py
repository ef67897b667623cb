"""Real servers on loopback that remotes of DVC lie on, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
