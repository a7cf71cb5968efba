"""The files that a value is made from, by which a cache knows whether the value is current.

>>> with recorded_files() as files:
...     record_file(Path(__file__))
>>> files.are_unchanged()
True
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# A file that changed a moment ago may change again within the resolution of its time, which is 2 s
# on the coarsest file system in use. Source: Microsoft, "File times", on FAT.
SETTLED = 2.0  # s
FileStamp = tuple[int, int, int]  # time of the last change [ns], bytes, inode


def file_stamp(path: Path) -> FileStamp | None:
    """Return the stamp of a file, which differs after a change; None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


class ReadFiles:
    """Files with their stamps from before they were read."""

    def __init__(self) -> None:
        self.stamps: dict[Path, FileStamp | None] = {}

    def are_unchanged(self) -> bool:
        """Return whether every file has the stamp that it had."""
        return all(file_stamp(path) == stamp for path, stamp in self.stamps.items())

    def are_settled(self) -> bool:
        """Return whether every file exists, and its last change is some time ago."""
        latest = time.time_ns() - int(SETTLED * 1e9)
        return all(stamp is not None and stamp[0] < latest for stamp in self.stamps.values())


_open_records: list[ReadFiles] = []


@contextmanager
def recorded_files() -> Iterator[ReadFiles]:
    """Yield a record of all files that are read inside, also by nested records."""
    files = ReadFiles()
    _open_records.append(files)
    try:
        yield files
    finally:
        _open_records.remove(files)


def record_file(path: Path) -> None:
    """Note a file that is about to be read."""
    path = path.absolute()
    stamp = file_stamp(path)
    for files in _open_records:
        files.stamps[path] = stamp


def record_again(files: ReadFiles) -> None:
    """Note the files of a value that is taken from a cache."""
    for record in _open_records:
        record.stamps |= files.stamps
