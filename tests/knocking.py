"""A real sshd with files of its own, and those who knock at it with the real client.

It knows one password, root's, by a shadow file in its own mount namespace: nothing of this machine changes.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from pathlib import Path

PASSWORD, WRONG_PASSWORD = "correct horse", "wrong"
CONFIGURATION = """\
Port {port}
ListenAddress {address}
HostKey {directory}/host
PidFile none
UsePAM no
PermitRootLogin yes
PasswordAuthentication yes
AuthorizedKeysFile {directory}/right.pub
StrictModes no
MaxStartups 100
"""


class Sshd:
    """Context manager; `log` is its log file."""

    def __init__(self, directory: Path, port: int, address: str = "127.0.0.1", run=subprocess.Popen) -> None:
        self.directory, self.port, self.address, self._run = directory, port, address, run
        self.log = directory / "auth.log"

    def __enter__(self) -> Sshd:
        self.directory.mkdir(exist_ok=True)
        for name in ("host", "right", "wrong"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / name], check=True)
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", PASSWORD], capture_output=True, text=True, check=True
        ).stdout
        (self.directory / "shadow").write_text(f"root:{hashed.strip()}:20000:0:99999:7:::\n")
        (self.directory / "conf").write_text(CONFIGURATION.format(**vars(self)))
        quoted = shlex.quote(str(self.directory))
        script = (
            f"mount --bind {quoted}/shadow /etc/shadow && mkdir -p /run/sshd"
            " && mount -t tmpfs -o mode=755 sshd /run/sshd"
            f" && exec /usr/sbin/sshd -D -f {quoted}/conf -E {quoted}/auth.log"
        )
        self.process = self._run(["unshare", "-m", "sh", "-c", script])
        end = time.monotonic() + 10
        while not (self.log.exists() and "listening" in self.log.read_text()):
            assert time.monotonic() < end, "sshd listens"
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def knock(self, user: str = "root", password: str = "", key: str = "", prefix: tuple[str, ...] = ()) -> int:
        """Try to log in, with a password or a key; the client's exit status."""
        method = "password" if password else "publickey"
        options = {
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "PreferredAuthentications": method,
            "PubkeyAuthentication": "no" if password else "yes",
            "IdentitiesOnly": "yes",
            "NumberOfPasswordPrompts": "1",
            "ConnectTimeout": "10",
        }
        argv = ["ssh", "-F", "none", "-p", str(self.port), *(f"-o{name}={value}" for name, value in options.items())]
        argv += ["-i", str(self.directory / key)] if key else []
        before = ["sshpass", "-e"] if password else []
        done = subprocess.run(
            [*prefix, *before, *argv, f"-l{user}", self.address, "true"],
            env={**os.environ, "SSHPASS": password},
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return done.returncode
