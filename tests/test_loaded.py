"""What a process loads: each worker and each command pays for it again, in time and in memory."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("cel", "cryptography", "hypothesis", "prometheus_client", "prompt_toolkit", "pyroute2", "scapy")
SHOW = "import sys, {}; print(*sorted({{n.partition('.')[0] for n in sys.modules}} & set({!r})))"


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("scentd.datapath.queue.worker", []),
        ("scentd.cli", []),
        ("scentd.control.client", []),
        ("scentd.guard.guard", []),
        ("scentd.daemon", ["cryptography", "pyroute2"]),
    ],
)
def test_only_what_is_used_is_loaded(module, heavy):
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(module, HEAVY)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == heavy


def test_a_worker_holds_no_configuration_and_derives_no_keys():
    names = ("scentd.config.sections", "scentd.wire.keys", "scentd.state.key_files")
    show = f"import sys, scentd.datapath.queue.worker; print(*sorted(set(sys.modules) & set({names!r})))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
