"""Files that must not be half written."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes, like: os.stat_result | None = None) -> None:
    """Put the data in the file's place, on the disk. A crash leaves the old file or the new one, a failure the old one.

    The file gets owner, group and mode of `like`, else mode 0600. Raises OSError.
    """
    new = path.with_name(f"{path.name}.new")
    try:
        with open(new, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            if like is not None:
                os.fchown(file.fileno(), like.st_uid, like.st_gid)
                os.fchmod(file.fileno(), like.st_mode & 0o7777)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
