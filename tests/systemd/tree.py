"""A host on which scentd has been installed by the README's words and nothing runs yet.

The root tree is this machine's own below an overlay, without its units, generators and presets: nothing has to be
fetched or cached, and systemd, Python and iptables are those that the other tests use. pip may have no network here:
the libraries that scentd needs are the test environment's, bound in.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import uuid
from pathlib import Path

from hosts import ROOT

UNITS = ROOT / "systemd"
README = ROOT / "README.md"
LIBRARIES = "/opt/scentd-libraries"
CHECKOUT = "/root/scentd"
BIND_LIBRARIES = f"--bind-ro={sysconfig.get_path('purelib')}:{LIBRARIES}"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
OFFLINE = {  # for pip: what it needs is there (PIP_NO_BUILD_ISOLATION=0 means without isolation)
    **dict.fromkeys(("PIP_NO_INDEX", "PIP_NO_DEPS", "PIP_IGNORE_INSTALLED"), "1"),
    **{"PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": LIBRARIES},
}
MASKED = ("systemd-networkd", "systemd-resolved", "systemd-timesyncd", "systemd-logind", "console-getty", "getty@tty1")
GENERATORS = Path("/usr/lib/systemd/system-generators")
NOT_SOURCE = (".venv", ".git", "*.egg-info", "build", "*_cache", "__pycache__", ".hypothesis")


def mount(kind: str, place: Path, options: str = "") -> None:
    subprocess.run(["mount", "-t", kind, kind, *(["-o", options] if options else []), place], check=True)


def umount(*places: Path) -> None:
    for place in places:
        subprocess.run(["umount", "--lazy", place], check=False)


def readme_install() -> tuple[list[str], str]:
    """The README's commands for a host of its own, up to `scentd doctor`, and the one that starts the units."""
    text = README.read_text()
    block = next(b for b in text.split("\n\n") if b.startswith("    python3 -m venv /opt/scentd"))
    lines = [line.split("#")[0].strip() for line in block.splitlines()]
    copied = re.search(r"copy `(systemd/\*\.service)` to `(/etc/systemd/system/)`", text)
    started = re.search(r"`(systemctl\s+enable\s[^`]+)`", text)
    assert copied
    assert started
    return [*lines, f"cp {copied[1]} {copied[2]}"], " ".join(started[1].split())


class Tree:
    """Context manager; `layer` is what lies over this machine's root. Leaving the block removes it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.layer = directory / "upper"

    def __enter__(self) -> Tree:
        self.directory.mkdir(parents=True)
        mount("tmpfs", self.directory)
        root = self.directory / "root"
        for path in (self.layer, self.directory / "work", root):
            path.mkdir()
        try:
            mount("overlay", root, f"lowerdir=/,upperdir={self.layer},workdir={self.directory}/work")
            self.strip(root)
            self.install(root)
        except BaseException:
            umount(root, self.directory)
            raise
        umount(root)
        return self

    def __exit__(self, *_: object) -> None:
        umount(self.directory)

    def strip(self, root: Path) -> None:
        """Leave a system that boots nothing of what this machine boots, and scentd's traces out."""
        system, generators = root / "etc/systemd/system", root / "etc/systemd/system-generators"
        for directory in (system, generators):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
        for unit in MASKED:
            (system / f"{unit}.service").symlink_to("/dev/null")
        for generator in GENERATORS.iterdir():
            (generators / generator.name).symlink_to("/dev/null")
        (system / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
        (root / "etc/fstab").write_text("")
        # Without an identity systemd takes it for the first boot, and enables whatever is installed.
        (root / "etc/machine-id").unlink(missing_ok=True)
        (root / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
        for path in ("etc/scentd", "var/lib/scentd", "opt/scentd"):
            shutil.rmtree(root / path, ignore_errors=True)
        (root / "usr/bin/scentd").unlink(missing_ok=True)

    def install(self, root: Path) -> None:
        """Run the README's commands in the checkout, each in a container that is not booted."""
        shutil.copytree(ROOT, root / CHECKOUT[1:], ignore=shutil.ignore_patterns(*NOT_SOURCE))
        (root / LIBRARIES[1:]).mkdir()
        commands, _ = readme_install()
        for command in commands:
            if command == "scentd doctor":  # a test's, on the machine that runs
                continue
            first, both, second = command.partition(" && ")
            run_in(root, first)
            if both:
                (packages,) = root.glob("opt/scentd/lib/python3*/site-packages")
                (packages / "libraries.pth").write_text(LIBRARIES + "\n")
                run_in(root, second)
        shutil.rmtree(root / CHECKOUT[1:])  # nothing that runs may need it


def run_in(root: Path, command: str) -> None:
    argv = [
        *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", f"--directory={root}"),
        *(BIND_LIBRARIES, f"--chdir={CHECKOUT}", "--private-network"),
        *(f"--setenv={name}={value}" for name, value in (ENVIRONMENT | OFFLINE).items()),
        *("sh", "-ec", command),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
