"""What goes wrong with replicas of a real PostgreSQL behind a real HAProxy."""

import os
import signal
import subprocess
import threading

import pytest
from read_pool import ROLE, USER, until

from scentd.act.resources.backend import Refused
from scentd.errors import HostError

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: servers run as postgres")


def test_a_full_disk_is_told_and_cleaned_up(pool, reads):
    small = pool.primary.directory / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size=8m,uid={USER}", "none", small], check=True)
    try:
        with pytest.raises(HostError, match="no room in"):
            pool.backend(directory=str(small / "replicas")).change("left", 1)
        assert list((small / "replicas").iterdir()) == []
        assert not pool.primary.slots()
    finally:
        subprocess.run(["umount", small], check=True)


def test_without_haproxy_nothing_is_begun(pool, reads):
    pool.haproxy.stop()
    try:
        with pytest.raises(HostError, match="is it running"):
            reads.change("left", 1)
        assert pool.clean()
    finally:
        pool.haproxy.start()
    with pytest.raises(Refused, match="name a backend"):
        pool.backend(pool="nobody").observe()
    with pytest.raises(Refused, match="server-template"):
        pool.backend(server="other").observe()


def test_a_missing_grant_is_named(pool, reads):
    for less, more, words in (
        (f"ALTER ROLE {ROLE} NOREPLICATION", f"ALTER ROLE {ROLE} REPLICATION", f"ALTER ROLE {ROLE} REPLICATION"),
        (f"REVOKE pg_read_all_stats FROM {ROLE}", f"GRANT pg_read_all_stats TO {ROLE}", "GRANT pg_read_all_stats"),
    ):
        pool.primary.sql(less)
        with pytest.raises(Refused, match=words):
            reads.change("left", 1)
        pool.primary.sql(more)
        assert pool.clean()


def test_a_missing_line_of_pg_hba_is_named(pool, reads):
    pool.primary.reload_hba(pool.primary.hba_text.replace("host replication", "# host replication"))
    with pytest.raises(Refused, match="add `host replication scent"):
        reads.change("left", 1)
    pool.primary.reload_hba(pool.primary.hba_text)
    assert pool.clean()


def test_a_primary_that_is_away_is_told_and_works_again(pool, reads):
    pool.primary.stop(signal.SIGQUIT)
    with pytest.raises(HostError, match="primary"):
        reads.change("left", 1)
    pool.primary.start()
    reads.change("left", 1)
    assert reads.observe() == {"left": 1.0}


def test_half_made_replicas_are_cleaned_up(pool, reads):
    half = pool.replicas / "3-26150.new"
    pool.primary.run("pg_basebackup", "-h", pool.primary.directory, "-p", pool.primary.port, "-D", half)
    slot = f"{reads._peers['left']._slot_prefix}4"
    pool.primary.sql(f"SELECT pg_create_physical_replication_slot('{slot}', true)")
    assert reads.observe() == {"left": 0.5}
    reads.change("left", 0)
    assert reads.observe() == {"left": 0.0}


def test_a_replica_that_never_catches_up_is_taken_away(pool, reads):
    never = pool.backend(join_timeout=2.0, settings={"primary_conninfo": "host=127.0.0.1 port=1"})
    with pytest.raises(HostError, match="join_timeout"):
        never.change("left", 1)
    assert pool.clean()


def begun(pool):
    return any(name.endswith(".new") for name in pool.directories())


def test_a_primary_that_dies_during_a_base_backup(pool, reads):
    errors = []

    def change():
        try:
            reads.change("left", 1)
        except HostError as error:
            errors.append(error)

    thread = threading.Thread(target=change)
    thread.start()
    until(lambda: begun(pool))
    pool.primary.stop(signal.SIGQUIT)
    thread.join(60)
    pool.primary.start()
    assert errors
    assert not pool.directories()
    reads.change("left", 1)
    assert reads.observe() == {"left": 1.0}


def test_a_kill_during_a_base_backup_is_healed(pool, reads):
    pid = os.fork()
    if not pid:
        pool.backend().change("left", 1)
        os._exit(0)
    until(lambda: begun(pool))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert reads.observe() == {"left": 0.5}
    reads.change("left", 1)
    assert reads.observe() == {"left": 1.0}
