from typing import Any as Buffer

def kernels() -> list[str | None]: ...
def hash_files(
    names: bytes,
    offsets: Buffer,
    records: Buffer,
    control: Buffer,
    folder: int,
    cold: bool,
    limit: int,
    lanes: int,
    kernel: int,
    /,
) -> None: ...
def hash_buffers(buffers: list[bytes | bytearray | memoryview], kernel: int, /) -> bytes: ...
def advance(states: Buffer, buffers: list[bytes | memoryview], kernel: int, /) -> None: ...
