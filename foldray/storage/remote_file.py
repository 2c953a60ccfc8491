"""A file on S3 that is read at random positions."""

import io
from typing import TYPE_CHECKING

from foldray.storage import objects

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class RemoteFile(io.RawIOBase):
    """A file on S3, read by range requests with retries."""

    def __init__(self, uri: str, size: int) -> None:
        self._uri = uri
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._size - self._at)
        if wanted <= 0:
            return 0
        data = objects.read_part(self._uri, self._at, wanted)[0]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
