"""What the kernels of some test machines lack. Debian's own has it, and scripts/try-kernel runs such tests on it."""

from __future__ import annotations

import subprocess

import pytest

ELSEWHERE = "this kernel has none; `scripts/try-kernel KERNEL TEST...` runs it on Debian's"


def needs_link(kind: str, options: str = "") -> pytest.MarkDecorator:
    """Skip the test if the kernel makes no interface of this kind."""
    command = f"ip link add scentd-try type {kind} {options}"
    return pytest.mark.skipif(not works(command), reason=f"{kind}: {ELSEWHERE}")


def needs_esp() -> pytest.MarkDecorator:
    command = "ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 1 mode transport " + aead("00" * 20)
    return pytest.mark.skipif(not works(command), reason=f"ESP: {ELSEWHERE}")


def works(command: str) -> bool:
    """Whether a command of ip(8) works in a network namespace of its own."""
    return subprocess.run(["unshare", "-n", *command.split()], capture_output=True, check=False).returncode == 0


def aead(key: str) -> str:
    """AES-GCM with a key and a salt, as ip-xfrm(8) takes it."""
    return f"aead rfc4106(gcm(aes)) 0x{key} 128"
