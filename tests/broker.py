"""A real nats-server on loopback, and waiting for what it brings."""

import asyncio
import socket
import subprocess
import time
from contextlib import suppress

from scentd.config.bus import Bus


class Server:
    def __init__(self, directory):
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.argv = ["nats-server", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(directory / "store")]
        self.start()

    def start(self):
        with open(self.directory / "log", "ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log)
        end = time.monotonic() + 15
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            assert time.monotonic() < end, (self.directory / "log").read_text()
            time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def settings(self, **more) -> Bus:
        return Bus(url=[f"nats://127.0.0.1:{self.port}"], name="h", key_file="k", **more)


async def until(condition, what):
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)
