"""Small BPF objects for tests: compiled from text, and a BPF file system of a test's own."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEAD = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
char _license[] SEC("license") = "GPL";
"""


def compiled(directory: Path, name: str, source: str) -> str:
    """The path of the object."""
    text, target = directory / f"{name}.bpf.c", directory / f"{name}.bpf.o"
    text.write_text(HEAD + source)
    include = f"-I/usr/include/{platform.machine()}-linux-gnu"
    subprocess.run(["clang", "-O2", "-g", "-target", "bpf", include, "-c", text, "-o", target], check=True)
    return str(target)


@contextmanager
def bpffs(directory: Path) -> Iterator[Path]:
    """A BPF file system of its own on `directory`, which is made."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)
