"""``dvc-integrity verify --store remote`` on S3, next to ``dvc pull`` from the same server.

The server is moto's, in a process of its own on this machine: it takes processor time for each
request, from both alike, so that the ratio is also one of requests. ``dvc pull`` fills an empty
cache; ours writes nothing, and hashes every byte.

Usage: ``python benchmarks/remotes.py [--scale X] [--pairs N] [--json FILE]``
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from timing import Options, Row, in_pairs, main
from workload import DVC, TOOL, BenchmarkError, Workplace, write_files

OBJECTS, BYTES = 10_000, 8_000

LISTED_AT_A_TIME = 1000
"""Objects that S3 lists in one answer at most."""

SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_DEFAULT_REGION": "us-east-1",
}

MAKE_BUCKET = """
import sys
import botocore.session
client = botocore.session.get_session().create_client("s3", endpoint_url=sys.argv[1])
client.create_bucket(Bucket="bench")
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server of S3, and the file that it logs its requests to."""

    address: str
    log: Path

    def requests(self) -> int:
        """Return how many requests it has had."""
        return self.log.read_bytes().count(b" HTTP/1")


def rows(options: Options, place: Workplace) -> list[Row]:
    """Compare reading 10,000 objects with ``dvc pull``, and count requests of a listing."""
    objects = options.scaled(OBJECTS, least=2)
    place = replace(place, environment={**place.environment, **CREDENTIALS})
    with serving(place) as server, place.project("on-s3") as root:
        place.run([sys.executable, "-c", MAKE_BUCKET, server.address], root)
        place.run([*DVC, "remote", "add", "-q", "-d", "s3", "s3://bench/pre"], root)
        place.run([*DVC, "remote", "modify", "-q", "s3", "endpointurl", server.address], root)
        write_files(root / "data", [BYTES] * (objects - 1))  # the listing is an object, too
        place.track(root, "data")
        place.run([*DVC, "push", "-q"], root)
        values = in_pairs(
            lambda: place.run([*TOOL, "verify", "--quiet", "--store", "remote"], root)[0],
            lambda: pull(place, root),
            options.pairs,
        )
        requests = tuple(attest(place, root, server) for _ in range(options.pairs))
    return [
        Row(
            f"verify --store remote of {objects:,} objects of 8 kB on S3 (moto's threaded server)",
            *values,
            peer="`dvc pull` into an empty cache",
            compared=True,
            least_ratio=3.0,
        ),
        Row(
            f"verify --attested of {objects:,} objects on S3: requests",
            requests,
            unit="requests",
            most=-(-objects // LISTED_AT_A_TIME) + 1,
        ),
    ]


def pull(place: Workplace, root: Path) -> float:
    """Return the seconds of a ``dvc pull`` that fills an empty cache and work tree."""
    shutil.rmtree(root / "data")
    shutil.rmtree(root / ".dvc" / "cache")
    return place.run([*DVC, "pull", "-q"], root)[0]


def attest(place: Workplace, root: Path, server: Server) -> int:
    """Return how many requests a verify makes that asks what the service attests."""
    before = server.requests()
    place.run([*TOOL, "verify", "--quiet", "--store", "remote", "--attested"], root)
    return server.requests() - before


@contextlib.contextmanager
def serving(place: Workplace) -> Iterator[Server]:
    """Run a server of S3 in a process of its own."""
    log = place.folder / "s3.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            env=place.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
        )
        with process:
            port = next((line for line in process.stdout or () if line.strip().isdigit()), b"")
            if not port:
                raise BenchmarkError(f"The server of S3 did not start.\n{log.read_text()[-1000:]}")
            yield Server(f"http://127.0.0.1:{int(port)}", log)
            process.communicate()


if __name__ == "__main__":
    main(rows)
