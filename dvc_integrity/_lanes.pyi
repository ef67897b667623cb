from typing import Any as Buffer

def kernels() -> list[str | None]: ...
def hash_files(
    names: bytes,
    offsets: Buffer,
    order: Buffer | None,
    records: Buffer,
    control: Buffer,
    folder: int,
    cold: bool,
    lanes: int,
    kernel: int,
    /,
) -> None: ...
def hash_buffers(
    buffers: list[bytes | bytearray | memoryview], order: Buffer | None, kernel: int, /
) -> bytes: ...
