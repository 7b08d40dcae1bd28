"""The operator's own back end: a program that gets one JSON object and answers with one."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from scentd.act.command import collect, kill_group, start
from scentd.act.resources.backend import Backend, Refused
from scentd.config.resource import Resource
from scentd.config.units import Seconds
from scentd.errors import HostError

ANSWER_MAX = 1 << 20  # bytes
REASON_MAX = 200  # characters of the first line of stderr
ERRORS_MAX = 4096  # bytes of stderr that are kept
LOOK = 0.2  # seconds between two looks at whether the daemon stops


class ReportedAmounts(msgspec.Struct):
    amounts: dict[str, float] = {}


class CommandResource(Resource, tag_field="kind", tag="command", kw_only=True):
    unit: ClassVar[str] = ""

    argv: tuple[str, ...]
    user: str
    timeout: Seconds = 60.0  # then the program is killed with its process group

    def mistakes(self, path: str) -> list[str]:
        problems = super().mistakes(path)
        if not self.argv or not self.argv[0].startswith("/"):
            problems.append(f"{path}.argv: write the program's absolute path first")
        if self.timeout <= 0:
            problems.append(f"{path}.timeout: must be more than 0")
        return problems


class ProgramBackend(Backend[CommandResource]):
    """Counts resource_command_runs and resource_command_failures."""

    section = CommandResource

    def observe(self) -> Mapping[str, float]:
        amounts = self.ask({"do": "observe"}).amounts
        return {peer: amount for peer, amount in amounts.items() if peer in self.setting.peers}

    def change(self, peer: str, amount: float) -> None:
        self.ask({"do": "change", "peer": peer, "amount": amount})
        found = self.observe().get(peer, 0.0)
        if found != amount:
            raise HostError(f"{self.label}: reported success, but {peer} has {found:g} and not {amount:g}")

    @property
    def label(self) -> str:
        return f"resource {self.resource.name}: command {self.resource.argv[0]}"

    def ask(self, question: dict[str, Any]) -> ReportedAmounts:
        self.setting.tally.add("resource_command_runs")
        try:
            return self.answer(msgspec.json.encode(question))
        except HostError:
            self.setting.tally.add("resource_command_failures")
            raise

    def answer(self, question: bytes) -> ReportedAmounts:
        errors = errors_file()
        try:
            status, output = self.run(question, errors)
            reason = first_line(os.pread(errors, ERRORS_MAX, 0))
        finally:
            os.close(errors)
        if status == os.EX_TEMPFAIL or status < 0:
            raise HostError(f"{self.label}: status {status}: {reason}")
        if status != 0:
            raise Refused(f"{self.label}: status {status}: {reason}")
        try:
            return msgspec.json.decode(output, type=ReportedAmounts)
        except msgspec.DecodeError as error:
            raise HostError(f'{self.label}: its answer is not {{"amounts": {{...}}}}: {error}') from None

    def run(self, question: bytes, errors: int) -> tuple[int, bytes]:
        deadline = time.monotonic() + self.resource.timeout
        process = start(self.resource.argv, question, self.resource.user, errors)
        output = b""
        try:
            ended = False
            while not ended:
                self.wait(0)
                if time.monotonic() > deadline:
                    raise HostError(f"{self.label}: killed after {self.resource.timeout:g} s; give a longer timeout")
                more, ended = collect(process, min(deadline, time.monotonic() + LOOK), ANSWER_MAX)
                output += more
                if len(output) > ANSWER_MAX:
                    raise HostError(f"{self.label}: its answer is longer than {ANSWER_MAX} bytes")
            return process.wait(), output
        finally:
            if process.returncode is None:
                kill_group(process)
            if process.stdout:
                process.stdout.close()


def errors_file() -> int:
    """A file in memory for stderr that cannot grow: a program that writes more neither blocks nor fills the memory."""
    file = os.memfd_create("scentd-errors", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(file, ERRORS_MAX)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return file


def first_line(data: bytes) -> str:
    line = data.rstrip(b"\0").decode(errors="replace").strip().split("\n")[0][:REASON_MAX]
    return "".join(char if char.isprintable() else "?" for char in line) or "it gave no reason"
