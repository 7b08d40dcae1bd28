"""libnftables through its JSON interface (libnftables-json(5)) and ctypes; no process is started.

One Nftables belongs to one thread and to the network namespace in which that thread made it.
"""

from __future__ import annotations

import ctypes
import functools
import json
from typing import Any

from scentd.errors import HostError

LIBRARY = "libnftables.so.1"
OUTPUT_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON, nftables/libnftables.h


@functools.cache
def library() -> ctypes.CDLL:
    """Raises HostError without the library."""
    try:
        lib = ctypes.CDLL(LIBRARY)
    except OSError:
        raise HostError(
            f"{LIBRARY}: not found; quarantine needs it: install libnftables1 (Debian) or nftables"
        ) from None
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
        self._context = self._lib.nft_ctx_new(0)
        if not self._context:
            raise HostError("nftables: no netlink socket; check CAP_NET_ADMIN and the kernel's nf_tables")
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)
        self._lib.nft_ctx_output_set_flags(self._context, OUTPUT_JSON)

    def run(self, commands: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Carry out the commands as one transaction: all or nothing. Return the listed objects. Raises HostError."""
        request = json.dumps({"nftables": commands}).encode()
        status = self._lib.nft_run_cmd_from_buffer(self._context, request)
        output = self._lib.nft_ctx_get_output_buffer(self._context)
        error = self._lib.nft_ctx_get_error_buffer(self._context).decode(errors="replace")
        if status != 0:
            first = next((line for line in error.splitlines() if line.strip()), "no reason given")
            raise HostError(f"nftables: {first.removeprefix('internal:0:0-0: ')}; check CAP_NET_ADMIN")
        return json.loads(output)["nftables"] if output else []

    def close(self) -> None:
        if self._context:
            self._lib.nft_ctx_free(self._context)
            self._context = None
