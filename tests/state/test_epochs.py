"""Invariant 8: the highest epochs survive whatever ends a process, and no file is trusted that is not whole."""

from __future__ import annotations

import os
import signal
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.core.tables import EPOCH_ROW, EpochRow
from scentd.errors import HostError
from scentd.state import epochs

ONE, TWO, THREE = (epochs.slot_id("seen", name) for name in (b"one", b"two", b"three"))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "epochs"


def test_kept_over_a_restart(path):
    first = epochs.prepare(path, [ONE, TWO])
    first.set_epoch(ONE, 7)
    first.raise_row(first.slot(ONE), 8, 99)
    first.close()
    again = epochs.prepare(path, [TWO, ONE])
    assert (again.epoch(ONE), again.epoch(TWO)) == (8, 0)
    assert again.entries()[ONE] == (8, 99, 7, 0, 0)


def test_a_fall_back_is_kept_over_a_restart_and_a_larger_file(path):
    first = epochs.prepare(path, [ONE])
    first.raise_row(first.slot(ONE), 700, 99)
    first.set_lag(first.slot(ONE), 20)
    first.fall_back(first.slot(ONE), 100, 700)
    assert first.entries()[ONE] == (100, 0, 0, 700, 20), "how far stampers lag no clock changes"
    first.close()
    many = [epochs.slot_id("seen", b"%d" % n) for n in range(2 * epochs._SPARE)]
    again = epochs.prepare(path, [*many, ONE])
    assert again.entries()[ONE] == (100, 0, 0, 700, 20)
    other = epochs.prepare(path, [ONE])
    other.fall_back(other.slot(ONE), 100, 300)
    assert other.entries()[ONE] == (100, 0, 0, 700, 20), "a later leap that ends earlier"


@pytest.mark.parametrize(
    ("magic", "one", "two"),
    [(b"scentd epochs 1\n", (7, 99), (8, 98)), (b"scentd epochs 2\n", (7, 99, 6, 50), (8, 98, 5, 0))],
)
def test_a_file_of_a_layout_before_is_read(path, magic, one, two):
    path.parent.mkdir()
    row = struct.Struct(f"={len(one)}I")
    numbers = row.pack(*one) + bytes(row.size) + row.pack(*two)
    path.write_bytes(magic + (3).to_bytes(8, "big") + ONE + bytes(8) + TWO + numbers)
    found = epochs.prepare(path, [ONE, THREE])
    assert found.entries() == {ONE: EpochRow(*one), TWO: EpochRow(*two), THREE: EpochRow()}
    assert not path.with_suffix(".bad").exists()


def test_kept_over_kill_9(path):
    """No flush, no close: the pages are the kernel's."""
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom scentd.state import epochs\n"
        f"e = epochs.prepare(Path({str(path)!r}), [{ONE!r}])\ne.set_epoch({ONE!r}, 12345)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert epochs.prepare(path, [ONE]).epoch(ONE) == 12345


def test_two_maps_see_each_other(path):
    daemon, worker = epochs.prepare(path, [ONE]), epochs.Epochs(path)
    worker.values[EPOCH_ROW * daemon.slot(ONE)] = 5
    assert daemon.epoch(ONE) == 5


def test_new_identities_use_the_same_file(path):
    """A reload that adds peers: who has the file mapped goes on writing into the one that counts."""
    before = epochs.prepare(path, [ONE])
    inode = path.stat().st_ino
    after = epochs.prepare(path, [ONE, TWO, THREE])
    assert path.stat().st_ino == inode
    before.set_epoch(ONE, 9)
    assert after.epoch(ONE) == 9
    after.set_epoch(TWO, 4)
    assert epochs.Epochs(path).epoch(TWO) == 4


def test_more_than_the_spare_slots(path):
    """A new file then; what the old one gained meanwhile is not lost."""
    old = epochs.prepare(path, [ONE])
    old.set_epoch(ONE, 3)
    many = [epochs.slot_id("seen", b"%d" % n) for n in range(2 * epochs._SPARE)]
    new = epochs.prepare(path, [*many, TWO])
    assert new.epoch(ONE) == 3
    old.set_epoch(ONE, 8)
    new.set_epoch(TWO, 6)
    new.raise_to(old)
    assert (new.epoch(ONE), new.epoch(TWO)) == (8, 6)
    old.set_lag(old.slot(ONE), 5)
    new.raise_to(old)
    assert new.entries()[ONE].lag == 5
    old.set_epoch(ONE, 5)
    new.raise_to(old)
    assert new.epoch(ONE) == 8, "never down"
    assert epochs.prepare(path, [ONE]).epoch(ONE) == 8


def test_who_left_keeps_its_epoch(path):
    epochs.prepare(path, [ONE, TWO]).set_epoch(TWO, 77)
    epochs.prepare(path, [ONE]).close()
    assert epochs.prepare(path, [TWO]).epoch(TWO) == 77


def test_directions_do_not_share_a_slot():
    assert epochs.slot_id("seen", b"a", b"b") != epochs.slot_id("seen", b"b", b"a")
    assert epochs.slot_id("seen", b"a") != epochs.slot_id("issued", b"a")


@given(st.binary(max_size=200))
def test_any_other_file_is_set_aside(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("epochs") / "epochs"
    path.write_bytes(content)
    assert not epochs.magic_of(path)
    assert epochs.prepare(path, [ONE]).epoch(ONE) == 0
    assert path.with_suffix(".bad").read_bytes() == content


@pytest.mark.parametrize("size", [-1, -16, 1])
def test_a_file_cut_off_or_longer_is_set_aside(path, size):
    epochs.prepare(path, [ONE]).set_epoch(ONE, 5)
    os.truncate(path, path.stat().st_size + size)
    assert epochs.prepare(path, [ONE]).epoch(ONE) == 0
    assert path.with_suffix(".bad").exists()


def test_a_crash_while_a_file_is_made(path):
    """The temporary file of a killed daemon is in nobody's way."""
    epochs.prepare(path, [ONE]).set_epoch(ONE, 5)
    path.with_suffix(".new").write_bytes(b"half")
    many = [epochs.slot_id("seen", b"%d" % n) for n in range(2 * epochs._SPARE)]
    assert epochs.prepare(path, [ONE, *many]).epoch(ONE) == 5


def test_private(path):
    epochs.prepare(path, [ONE])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_no_directory_to_be_had(tmp_path):
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file" / "epochs", Path("/proc/nothing/epochs")):
        with pytest.raises(HostError, match=r"daemon.state_dir .*highest epochs"):
            epochs.prepare(wrong, [ONE])
