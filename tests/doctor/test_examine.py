"""The verdict on values of this and of other hosts."""

from pathlib import Path

import pytest

from scentd.doctor import examine


@pytest.mark.parametrize(
    ("release", "ok"),
    [("4.19.0-27-amd64", "no"), ("5.10.0-30", "warning"), ("6.1.0", "yes"), ("6.18.4-x", "yes"), ("?", "no")],
)
def test_kernel(release, ok):
    assert examine.check_kernel(release).ok == ok


@pytest.mark.parametrize(
    ("mask", "ok", "missing"),
    [
        (~0, "yes", ""),
        (0, "no", "CAP_NET_ADMIN, CAP_NET_RAW"),
        (1 << 12, "no", "CAP_NET_RAW"),
        (3 << 12, "warning", "CAP_SETUID"),
    ],
)
def test_capabilities(mask, ok, missing):
    check = examine.check_capabilities(mask)
    assert check.ok == ok
    assert missing in check.found


@pytest.mark.parametrize(
    ("state", "status", "error", "ok"),
    [
        (0, 0x2001, 0.02, "yes"),
        (5, 0x40, 16.0, "warning"),
        (0, 0x40, 0.0, "warning"),
        (0, 1, 9.0, "warning"),
        (-1, 0, 0.0, "warning"),
    ],
)
def test_clock(state, status, error, ok):
    assert examine.check_clock(state, status, error).ok == ok


def test_the_clock_is_read_as_the_kernel_gives_it():
    """The status has a sane value, and that of a second reading; a wrong offset in the struct would not."""
    state, status, error = examine.clock()
    assert 0 <= state <= 5
    assert (state == examine.TIME_ERROR) == bool(status & examine.STA_UNSYNC)
    assert 0 <= error <= 16 + 1


@pytest.mark.parametrize(("count", "ok"), [(None, "yes"), ("0", "yes"), ("17", "warning")])
def test_connection_tracking(count, ok):
    assert examine.check_conntrack(count).ok == ok


@pytest.mark.parametrize(("setting", "ok"), [("0", "warning"), ("1", "yes"), ("2", "yes"), (None, "yes")])
def test_jit(setting, ok):
    assert examine.check_jit(setting).ok == ok


def test_packages_missing_and_old():
    check = examine.check_packages(["mmh3>=5", "msgspec>=9999", "no-such-thing>=1"])
    assert check.ok == "no"
    assert "older than 9999" in check.found
    assert "no-such-thing is missing" in check.found
    assert "mmh3" not in check.found
    assert examine.check_packages([]).ok == "no"


def test_the_requirements_are_those_of_setup_cfg():
    wanted = {line.partition(">=")[0].lower().replace("-", "_") for line in examine.requirements()}
    assert {"netfilterqueue", "cryptography", "pyroute2", "mmh3"} <= wanted
    assert "pytest" not in wanted


def test_state_directory(tmp_path):
    assert examine.check_state_dir(tmp_path).ok == "yes"
    assert "will be made" in examine.check_state_dir(tmp_path / "new" / "deep").found
    assert list(tmp_path.iterdir()) == []
    assert examine.check_state_dir(Path("/proc")).ok == "no"


def test_space(tmp_path):
    assert examine.check_space(tmp_path).found.endswith("MiB free")
    assert examine.check_space(Path("/proc")).ok == "no"  # a filesystem without a free block
