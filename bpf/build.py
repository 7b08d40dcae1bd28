"""The step of the package's build that makes the BPF objects and takes the operator's files in.

setup.cfg names it under `cmdclass`.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
FILES = HERE.parent / "systemd"


class BuildPy(build_py):
    """build_py with scentd/datapath/offload/*.bpf.o brought up to date first, and systemd/ as scentd/files behind.

    Raises SystemExit, not an exception of setuptools: of those an editable installation makes warnings, and goes on
    without the objects.
    """

    def run(self) -> None:
        try:
            made = subprocess.run(["make", "--silent", "--directory", str(HERE)], check=False)
        except FileNotFoundError:
            raise SystemExit("error: make not found: install make, clang and libbpf-dev") from None
        if made.returncode:
            raise SystemExit("error: the BPF objects were not made; the line of make above says why")
        super().run()
        if not self.editable_mode:
            for path in sorted(path for path in FILES.rglob("*") if path.is_file()):
                target = str(Path(self.build_lib) / "scentd" / "files" / path.relative_to(FILES))
                self.mkpath(str(Path(target).parent))
                self.copy_file(str(path), target)
