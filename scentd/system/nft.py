"""libnftables through ctypes, by JSON (libnftables-json(5)) or by the language of nft(8); no process is started.

One Nftables belongs to one thread and to the network namespace in which that thread made it. The library keeps tables
that all contexts share and guards them by nothing, so one thread at a time is inside it: two corrupted the heap.
"""

from __future__ import annotations

import ctypes
import functools
import json
import socket
import struct
import threading
from typing import Any

from scentd.errors import HostError
from scentd.system import debian

LIBRARY = "libnftables.so.1"
MISSING = "No such file or directory"
_inside = threading.Lock()
OUTPUT_JSON, WITHOUT_COUNTS, NUMERIC_PRIORITY, WITHOUT_ELEMENTS = 1 << 4, 1 << 2, 1 << 8, 1 << 11  # libnftables.h
TIMEOUT = 5.0  # seconds
NETLINK_NETFILTER, GETGEN, NFTA_GEN_ID = 12, 10 << 8 | 16, 1  # linux/netfilter/nfnetlink.h, nf_tables.h


@functools.cache
def library() -> ctypes.CDLL:
    """Raises HostError without the library."""
    try:
        lib = ctypes.CDLL(LIBRARY)
    except OSError:
        raise HostError(f"{LIBRARY}: not found; every rule of ours needs it: {debian.install(LIBRARY)}") from None
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "nft_ctx_new": (pointer, [ctypes.c_uint32]),
        "nft_ctx_free": (None, [pointer]),
        "nft_ctx_buffer_output": (ctypes.c_int, [pointer]),
        "nft_ctx_buffer_error": (ctypes.c_int, [pointer]),
        "nft_ctx_get_output_buffer": (text, [pointer]),
        "nft_ctx_get_error_buffer": (text, [pointer]),
        "nft_ctx_output_set_flags": (None, [pointer, ctypes.c_uint]),
        "nft_run_cmd_from_buffer": (ctypes.c_int, [pointer, text]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def available() -> bool:
    """Whether the library is installed: without it nothing of ours can be in nftables."""
    try:
        library()
    except HostError:
        return False
    return True


class Nftables:
    """A context of the library. Raises HostError if the library gives none."""

    def __init__(self) -> None:
        self._lib = library()
        with _inside:
            self._context = self._lib.nft_ctx_new(0)
        if not self._context:
            raise HostError("nftables: no netlink socket; check CAP_NET_ADMIN and the kernel's nf_tables")
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)
        self._lib.nft_ctx_output_set_flags(self._context, OUTPUT_JSON)

    def run(self, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Carry out the commands as one transaction: all or nothing. Return the listed objects. Raises HostError."""
        output = self.run_text(json.dumps({"nftables": commands}))
        return json.loads(output)["nftables"] if output else []

    def run_text(self, commands: str) -> str:
        """Carry out commands in the language of nft(8) as one transaction; return what they print. Raises HostError."""
        with _inside:
            status = self._lib.nft_run_cmd_from_buffer(self._context, commands.encode())
            output = self._lib.nft_ctx_get_output_buffer(self._context).decode()
            error = self._lib.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
        if status != 0:
            first = next((line for line in error.splitlines() if line.strip()), "no reason given")
            raise HostError(f"nftables: {first.removeprefix('internal:0:0-0: ')}; check CAP_NET_ADMIN")
        return output

    def table(self, name: str, family: str = "inet") -> list[dict[str, Any]] | None:
        """The objects of a table, None if there is none. Raises HostError.

        It is asked for by its name: libnftables 1.0.6 reads past an array when it prints a table with the flag `owner`,
        such as the guard's, as JSON.
        """
        try:
            return self.run([{"list": {"table": {"family": family, "name": name}}}])
        except HostError as error:
            if MISSING in str(error):
                return None
            raise

    def tables(self) -> list[tuple[str, str]]:
        """(family, name) of all tables. Raises HostError."""
        words = (line.split() for line in self._listed("list tables", 0).splitlines())
        return [(found[1], found[2]) for found in words if len(found) == 3]

    def elements(self, table: str, name: str, family: str = "inet") -> list[Any]:
        """The elements of a set; none if there is no such set. Raises HostError."""
        try:
            listed = self.run([{"list": {"set": {"family": family, "table": table, "name": name}}}])
        except HostError as error:
            if MISSING in str(error):
                return []
            raise
        return next((item["set"].get("elem", []) for item in listed if "set" in item), [])

    def text(self, name: str, family: str = "inet") -> str:
        """A table as nft(8) prints it, "" if there is none. Raises HostError."""
        try:
            return self._listed(f"list table {family} {name}", 0)
        except HostError as error:
            if MISSING in str(error):
                return ""
            raise

    def ruleset(self) -> str:
        """All tables as nft(8) prints them, priorities as numbers, without elements of sets. Raises HostError."""
        return self._listed("list ruleset", WITHOUT_COUNTS | NUMERIC_PRIORITY | WITHOUT_ELEMENTS)

    def _listed(self, command: str, flags: int) -> str:
        self._lib.nft_ctx_output_set_flags(self._context, flags)
        try:
            return self.run_text(command)
        finally:
            self._lib.nft_ctx_output_set_flags(self._context, OUTPUT_JSON)

    def close(self) -> None:
        if self._context:
            with _inside:
                self._lib.nft_ctx_free(self._context)
            self._context = None


def generation() -> int:
    """A number that each change of nftables in this network namespace raises, whosesoever. Raises HostError."""
    request = struct.pack("=IHHIIBBH", 20, GETGEN, 1, 0, 0, socket.AF_UNSPEC, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as end:
            end.settimeout(TIMEOUT)
            end.send(request)
            answer = end.recv(4096)
    except OSError as error:
        raise HostError(f"nftables: {error}; check CAP_NET_ADMIN and the kernel's nf_tables") from error
    at = 20  # behind struct nlmsghdr and struct nfgenmsg
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == NFTA_GEN_ID and length == 8:
            return int.from_bytes(answer[at + 4 : at + 8], "big")
        at += max(4, length + 3 & ~3)
    raise HostError("nftables: the kernel does not tell its generation; check that it has nf_tables")
