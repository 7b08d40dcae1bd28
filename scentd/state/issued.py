"""The last epoch of each network, for a daemon that follows: its first packets have a scent, too.

One file a network, in a directory that only root reads and that does not outlive the machine (tmpfs), because the files
hold tag keys. A file that is too old, or of another key, is of no use and does no harm.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from scentd.config.sections import Config
from scentd.model import IssuedEpoch

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(IssuedEpoch).decode


def directory(config: Config) -> Path:
    """Beside the control socket, in the service's runtime directory."""
    return Path(config.daemon.control_socket).parent / "issued"


class IssuedEpochs:
    """The files. A failure is logged and changes nothing else: only a restart would miss them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._failed = False

    def write(self, issued: IssuedEpoch) -> None:
        path = self._directory / issued.network
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            new = path.with_name(f".{issued.network}")
            with open(new, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(_encode(issued))
            os.replace(new, path)
        except OSError as error:
            if not self._failed:
                log.warning("%s: %s; after a restart packets leave without a scent at first", path, error.strerror)
            self._failed = True
            return
        self._failed = False

    def remove(self) -> None:
        """Remove the files: no daemon follows."""
        try:
            for path in self._directory.iterdir():
                path.unlink()
            self._directory.rmdir()
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s: %s", self._directory, error)

    def read(self, networks: Iterable[str]) -> Iterator[IssuedEpoch]:
        for network in networks:
            try:
                yield _decode((self._directory / network).read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, msgspec.MsgspecError) as error:
                log.warning("%s: %s; the next epoch replaces it", self._directory / network, error)
