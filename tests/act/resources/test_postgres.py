"""Replicas of a real PostgreSQL behind a real HAProxy: how they come, serve and go."""

import os
import signal
import threading
from pathlib import Path

import psycopg
import pytest
from read_pool import PASSWORD, ROLE, until

from scentd.act.resources.backend import Refused
from scentd.act.resources.haproxy import HaproxyPool

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: servers run as postgres")
LEFT = {"left": 0.0}


def client(pool):
    return psycopg.connect(
        host="127.0.0.1", port=pool.haproxy.front, user=ROLE, password=PASSWORD, dbname="postgres", autocommit=True
    )


def servers(pool):
    known = HaproxyPool(str(pool.haproxy.socket), "reads", "replica", 5.0).servers()
    return sorted(number for number, server in known.items() if server.serves)


def pid_of(pool, number):
    (directory,) = pool.replicas.glob(f"{number}-*")
    return int((directory / "postmaster.pid").read_text().split()[0])


def test_replicas_come_and_go(pool, reads):
    assert reads.observe() == LEFT
    reads.change("left", 2)
    assert reads.observe() == {"left": 2.0}
    assert servers(pool) == [1, 2]
    pool.primary.sql("CREATE TABLE deed AS SELECT 7 AS number; GRANT SELECT ON deed TO scent")
    with client(pool) as connection:
        until(lambda: connection.execute("SELECT to_regclass('deed')").fetchone()[0])
        assert connection.execute("SELECT pg_is_in_recovery(), number FROM deed").fetchone() == (True, 7)
    reads.change("left", 1)
    assert reads.observe() == {"left": 1.0}
    assert [name[0] for name in pool.directories()] == ["1"]
    assert len(pool.primary.slots()) == 1
    assert reads.setting.tally.all()["reads_base_backups"] == 2
    pool.primary.sql("DROP TABLE deed")


def test_the_same_amount_changes_nothing(pool, reads):
    reads.change("left", 1)
    before = pid_of(pool, 1)
    reads.change("left", 1)
    assert pid_of(pool, 1) == before
    assert reads.setting.tally.all()["reads_base_backups"] == 1


def test_a_query_ends_before_its_replica_goes(pool, reads):
    reads.change("left", 1)
    with client(pool) as connection:
        removal = threading.Thread(target=reads.change, args=("left", 0))
        removal.start()
        assert connection.execute("SELECT 1 FROM pg_sleep(1.5)").fetchone() == (1,)
    removal.join(60)
    assert not reads.setting.tally.all()["reads_cut"]


def test_after_grace_a_session_is_cut(pool, reads):
    reads.change("left", 1)
    hasty = pool.backend(grace=0.3)
    with client(pool) as connection:
        hasty.change("left", 0)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert hasty.setting.tally.all()["reads_cut"] == 1


def test_a_killed_server_is_started_again(pool, reads):
    reads.change("left", 2)
    pid = pid_of(pool, 2)
    os.kill(pid, signal.SIGKILL)
    until(lambda: reads.observe() == {"left": 1.5})
    reads.change("left", 2)
    assert reads.observe() == {"left": 2.0}
    assert reads.setting.tally.all()["reads_base_backups"] == 2


def test_a_removed_directory_is_made_anew(pool, reads):
    reads.change("left", 2)
    (directory,) = pool.replicas.glob("1-*")
    pid = pid_of(pool, 1)
    os.kill(pid, signal.SIGQUIT)
    reads._peers["left"]._host.remove(str(directory))
    assert reads.observe() == {"left": 1.5}
    reads.change("left", 2)
    assert reads.observe() == {"left": 2.0}
    assert len(pool.primary.slots()) == 2


def test_haproxy_started_anew_gets_its_servers_back(pool, reads):
    reads.change("left", 2)
    pool.haproxy.stop()
    pool.haproxy.start()
    assert reads.observe() == {"left": 0.5}
    reads.change("left", 2)
    assert servers(pool) == [1, 2]
    assert reads.setting.tally.all()["reads_base_backups"] == 2


def test_a_dropped_slot_makes_a_new_replica(pool, reads):
    reads.change("left", 1)
    (slot,) = pool.primary.slots()
    os.kill(pid_of(pool, 1), signal.SIGQUIT)
    until(lambda: pool.primary.sql("SELECT count(*) FROM pg_replication_slots WHERE active") == ["0"])
    pool.primary.sql(f"SELECT pg_drop_replication_slot('{slot}')")
    assert reads.observe() == {"left": 0.5}
    reads.change("left", 1)
    assert reads.observe() == {"left": 1.0}


def test_a_late_replica_does_not_count(pool, reads):
    reads.change("left", 1)
    strict = pool.backend(max_lag=0.2, join_timeout=1.0)
    assert strict.observe() == {"left": 1.0}
    os.kill(startup_of(pid_of(pool, 1)), signal.SIGSTOP)
    try:
        pool.primary.sql("CREATE TABLE late (); DROP TABLE late")
        until(lambda: strict.observe() == {"left": 0.5})
    finally:
        os.kill(startup_of(pid_of(pool, 1)), signal.SIGCONT)
    until(lambda: strict.observe() == {"left": 1.0})


def startup_of(postmaster):
    """The process that replays the log."""
    for child in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
        if b"startup" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("nobody replays")


def test_each_peer_has_its_own(pool):
    section = {"peer": "*", "directory": f"{pool.replicas}/{{peer}}", "name": "all"}
    backend = pool.backend(("left", "right.Big-1"), **section)
    with pytest.raises(Refused, match="does not serve"):
        backend.change("middle", 1)
    problems = pool.section(**section).mistakes("resource[0]")
    assert [problem.split(":")[0] for problem in problems] == ["resource[0].conninfo", "resource[0].pool"]
    backend.change("right.Big-1", 0)
