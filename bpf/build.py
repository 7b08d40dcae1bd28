"""The step of the package's build that makes the BPF objects; setup.cfg names it under `cmdclass`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


class BuildPy(build_py):
    """build_py with scentd/datapath/offload/*.bpf.o brought up to date first. Raises SystemExit.

    Not an exception of setuptools: of those an editable installation makes warnings, and goes on without the objects.
    """

    def run(self) -> None:
        try:
            made = subprocess.run(["make", "--silent", "--directory", str(HERE)], check=False)
        except FileNotFoundError:
            raise SystemExit("error: make not found: install make, clang and libbpf-dev") from None
        if made.returncode:
            raise SystemExit("error: the BPF objects were not made; the line of make above says why")
        super().run()
