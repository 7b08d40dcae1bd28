"""Commands as real processes."""

import logging
import os
import pwd
import time

import pytest
from deeds import ME, shell, wait_for

from scentd.act import command
from scentd.errors import HostError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="changing the user needs root")


def gone(pid):
    """Ended; a zombie without a parent that cares is ended, too."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().split()[2] == "Z"
    except FileNotFoundError:
        return True


def test_the_payload_comes_in_and_the_status_goes_out(tmp_path):
    argv = shell(f"cat > {tmp_path}/in; exit 7")
    assert command.run(argv, b"x" * 300_000, 5.0, ME) == 7
    assert (tmp_path / "in").read_bytes() == b"x" * 300_000


def test_a_program_that_does_not_read_is_no_trouble():
    assert command.run(["/bin/true"], b"x" * 300_000, 5.0, ME) == 0


def test_no_shell_comes_between(tmp_path):
    assert command.run(["/usr/bin/touch", f"{tmp_path}/a b; $(reboot)"], b"", 5.0, ME) == 0
    assert os.listdir(tmp_path) == ["a b; $(reboot)"]


def test_the_environment_is_minimal(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    command.run(
        shell(f"/usr/bin/env > {tmp_path}/env; ls /proc/self/fd > {tmp_path}/fd; pwd > {tmp_path}/cwd"), b"", 5.0, ME
    )
    names = {line.split("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert names <= {"PATH", "LANG", "PWD", "SHLVL", "_", "OLDPWD"}
    assert len((tmp_path / "fd").read_text().split()) == 4  # 0, 1, 2 and that of ls
    assert (tmp_path / "cwd").read_text() == "/\n"


@as_root
def test_it_runs_as_the_user_without_groups(tmp_path):
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == 0 and str(parent).startswith("/tmp/"):  # noqa: S108 - pytest's own directories
            parent.chmod(parent.stat().st_mode | 0o011)
    assert command.run(shell(f"id -un > {tmp_path}/u; id -G > {tmp_path}/g"), b"", 5.0, "nobody") == 0
    assert (tmp_path / "u").read_text() == "nobody\n"
    assert (tmp_path / "g").read_text().split() == [str(pwd.getpwnam("nobody").pw_gid)]


def test_late_means_the_whole_group_is_killed(tmp_path):
    script = f"sleep 60 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; wait"
    start = time.monotonic()
    with pytest.raises(HostError, match=r"killed after 0.3 s; give the policy a longer do.timeout"):
        command.run(shell(script), b"", 0.3, ME)
    assert time.monotonic() - start < 2
    for name in ("self", "child"):
        pid = (tmp_path / name).read_text().strip()
        wait_for(lambda pid=pid: gone(pid))


def test_a_child_in_the_background_does_not_hold_it_up(tmp_path):
    start = time.monotonic()
    assert command.run(shell(f"sleep 5 & echo $! > {tmp_path}/child"), b"", 4.0, ME) == 0
    assert time.monotonic() - start < 2
    os.kill(int((tmp_path / "child").read_text()), 9)


def test_output_is_bounded_and_logged_at_debug(caplog):
    with caplog.at_level(logging.DEBUG):
        assert (
            command.run(shell("echo begin; head -c 3000000 /dev/zero | tr '\\0' x; echo end >&2"), b"", 10.0, ME) == 0
        )
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert "begin" in record.getMessage()
    assert len(record.getMessage()) < command.OUTPUT_MAX + 200


@pytest.mark.parametrize(
    ("argv", "user", "message"),
    [
        (["/nowhere/x"], ME, "command /nowhere/x: No such file or directory"),
        (["/etc/passwd"], ME, "command /etc/passwd: Permission denied"),
        (["/bin/true"], "no-such-user", "there is no user 'no-such-user'"),
    ],
)
def test_what_cannot_be_started_is_a_host_error(argv, user, message):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(HostError, match=message):
        command.run(argv, b"", 1.0, user)
    assert len(os.listdir("/proc/self/fd")) == before
