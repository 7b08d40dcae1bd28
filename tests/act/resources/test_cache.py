"""Connections that are led to edges; the world is in tests/caching.py."""

import os
import shutil
import signal
import subprocess
import time
from ipaddress import ip_network

import pytest
from caching import (
    FAR,
    HERE,
    ORIGINS,
    PEERS,
    SECONDS,
    WRONG,
    cache,
    counts,
    get,
    rules,
    site_files,
    through,
    until,
    world,
)

from scentd.act.providers import Provider
from scentd.act.resources.backend import Refused
from scentd.act.resources.cache import CacheBackend
from scentd.act.resources.cache_section import CacheEdge, CacheResource
from scentd.errors import HostError

pytestmark = [pytest.mark.netns, pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    made = tmp_path_factory.mktemp("cache")
    site_files(made)
    return made


@pytest.fixture(scope="module")
def made(directory):
    with world(directory) as net:
        yield net


@pytest.fixture
def net(made, directory):
    made.servers["here"].stop()  # empty its cache
    shutil.rmtree(directory / "here.cache", ignore_errors=True)
    made.servers["here"].start()
    made.log = directory / "access.log"
    with made.log.open("w"):
        pass
    yield made
    made.hosts["host"].call(CacheBackend.remove_all)
    made.hosts["host"].run("conntrack", "-F", check=False)


def test_prefetched_objects_become_fast_and_new_connections_go_back(net, directory):
    before = {family: min(get(net, "/app.js", family)[0] for _ in range(3)) for family in (4, 6)}
    with cache(net) as steered:
        assert steered.observe() == {"client": 0, "other": 0}
        steered.change(client=1)
        assert steered.observe() == {"client": 1, "other": 0}
        for family in (4, 6):
            got = [get(net, "/app.js", family) for _ in range(3)]
            assert {one[1] for one in got} == {"HIT"}  # the first one, too
            assert got[0][2] == (directory / "www" / "app.js").read_bytes()
            assert min(one[0] for one in got) < before[family] / 3
            print(f"family {family}: {before[family] * 1e3:.1f} ms -> {min(one[0] for one in got) * 1e3:.1f} ms")
        assert counts(steered)["cache_warmed_objects"] == 1  # only what this network has asked for
        assert through(net, "/big.bin") == ["MISS", "HIT"]
        steered.change(client=1)  # it is there
        steered.change(client=0)
        assert steered.observe() == {"client": 0, "other": 0}
        assert through(net) == [None, None]


def test_without_a_log_the_check_is_measured(net):
    with cache(net, access_log="") as steered:
        steered.change(client=1)
        assert through(net) == ["HIT", "HIT"]
    with cache(net, access_log="/nowhere/access.log") as steered:
        steered.change(client=0)
        steered.change(client=1)
        assert counts(steered)["cache_logs_unread"] == 1


def test_hostile_lines_are_never_asked_for(net):
    evil = ["/../../etc/passwd", "//evil/x", "http://evil/x", "/%2e%2e/x", "/a%0d%0aX:y", "/" + "y" * 100_000, "/\x07"]
    lines = [f'10.1.0.1 - - [28/Nov/2026:10:00:00 +0000] "GET {target} HTTP/1.1" 200 5 "-" "-"' for target in evil] * 5
    lines += ['10.1.0.1 - - [28/Nov/2026:10:00:00 +0000] "GET /big.bin HTTP/1.1" 200 5 "-" "-"', "\x00\x00"]
    net.log.write_text("\n".join(lines) + "\n")
    size = net.log.stat().st_size
    with cache(net) as steered:
        steered.change(client=1)
    with net.log.open() as log:
        log.seek(size)
        asked = {line.split()[6] for line in log if '"GET' in line}
    assert asked == {"/big.bin"}


def test_an_edge_that_is_not_closer_is_left_and_not_tried_again(net):
    get(net)
    with cache(net, edges=[FAR]) as steered:
        with pytest.raises(
            Refused, match=r"edge far did not get closer: \d+ ms for /logo.png at 10.4.0.2:8080 instead"
        ):
            steered.change(client=1)
        assert steered.observe() == {"client": 0, "other": 0}
        assert through(net) == [None, None]
        size = net.log.stat().st_size
        with pytest.raises(Refused, match="edge far did not get closer"):
            steered.change(client=1)
        assert net.log.stat().st_size == size  # nothing was measured
        assert counts(steered)["cache_not_closer"] == 1
    with cache(net, edges=[FAR], retry_after=0.01) as steered:
        for _ in range(2):
            with pytest.raises(Refused, match="did not get closer"):
                steered.change(client=1)
            time.sleep(0.02)
        assert counts(steered)["cache_not_closer"] == 2


def test_after_an_edge_that_was_not_closer_another_one_is_tried(net):
    with cache(net, edges=[FAR, HERE], hurting=["asia", "eu"]) as steered:
        steered.change(client=1)
        assert through(net) == ["HIT", "HIT"]
    with cache(net, edges=[FAR, HERE], hurting=["asia"]) as steered:
        steered.change(client=0)
        with pytest.raises(Refused, match="edge far did not get closer"):
            steered.change(client=1)
    with (
        cache(net, edges=[HERE], hurting=["africa"]) as steered,
        pytest.raises(Refused, match="no edge serves africa, where peer client has a high latency"),
    ):
        steered.change(client=1)


def test_an_edge_that_answers_something_else_is_left(net):
    with cache(net, edges=[WRONG]) as steered:
        with pytest.raises(Refused, match=r"edge wrong answers 404 where the origin answers 200, for /logo.png"):
            steered.change(client=1)
        assert through(net) == [None, None]


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_dead_edge_is_left_at_the_next_look(net, how):
    edge = net.servers["here"]
    with cache(net, answer_timeout=1.0) as steered:
        steered.change(client=1)
        assert through(net) == ["HIT", "HIT"]
        if how == "killed":
            edge.stop()
        else:
            edge.process.send_signal(signal.SIGSTOP)
        try:
            assert steered.observe() == {"client": 0, "other": 0}
            assert through(net) == [None, None]
            with pytest.raises(HostError, match=r"does not give /logo.png|no edge for peer client answers"):
                steered.change(client=1)
            assert steered.observe() == {"client": 0, "other": 0}
        finally:
            if how == "killed":
                edge.start()
            else:
                edge.process.send_signal(signal.SIGCONT)
        steered.change(client=1)
        assert steered.observe()["client"] == 1
        assert counts(steered)["cache_edges_lost"] == 1


def test_what_others_remove_comes_back_without_measuring_again(net):
    host = net.hosts["host"]
    with cache(net) as steered:
        steered.change(client=1)
        size = net.log.stat().st_size
        host.run("nft", "flush", "ruleset")
        assert steered.observe() == {"client": 0, "other": 0}
        assert through(net) == [None, None]
        steered.change(client=1)
        assert steered.observe()["client"] == 1
        assert through(net) == ["HIT", "HIT"]
        host.run("nft", "flush", "chain", "inet", "scentd_steer_web", "from_peers")
        assert steered.observe()["client"] == 0.5
        steered.change(client=1)
        assert through(net) == ["HIT", "HIT"]
        host.run("nft", "delete", "element", "inet", "scentd_steer_web", "ipv4_32", "{ 10.1.0.1 }")
        assert steered.observe()["client"] == 0.5
        steered.change(client=1)
        assert steered.observe()["client"] == 1
        with net.log.open() as log:
            log.seek(size)
            assert not [line for line in log if "scentd" in line]
        host.run("nft", "flush", "ruleset")
        steered.change(client=0)
        assert "scentd_steer" not in rules(net)


def test_a_new_run_takes_over_what_is_there(net):
    with cache(net) as steered:
        steered.change(client=1)
    with cache(net) as steered:
        assert steered.observe() == {"client": 1, "other": 0}
        size = net.log.stat().st_size
        steered.change(client=1)
        assert net.log.stat().st_size == size
    with cache(net, edges=[FAR]) as steered:  # another configuration
        assert steered.observe()["client"] == 0.5
        steered.change(client=0)
        assert steered.observe()["client"] == 0
        assert "10.1.0.2" not in rules(net)


def test_established_connections_are_not_cut(net):
    """A slow download over the edge, while its network goes back to the origin, and the other way round."""
    script = (
        "import sys, http.client as h; c = h.HTTPConnection('10.3.0.2', 80, timeout=10); "
        "c.request('GET', '/slow/big.bin'); r = c.getresponse(); "
        "print(r.getheader('X-Cache'), flush=True); print(len(r.read()))"
    )
    with cache(net) as steered:
        for amount, expected in ((1, "None"), (0, "MISS")):
            download = net.hosts["client"].start("python3", "-c", script, stdout=subprocess.PIPE, text=True)
            assert download.stdout.readline().strip() == expected
            steered.change(client=amount)
            assert (through(net) == [None, None]) == (amount == 0)
            assert download.stdout.readline().strip() == "400000"
            assert download.wait(SECONDS) == 0


def test_another_networks_part_of_a_network_goes_to_the_origin(net):
    peers = {"wide": (ip_network("10.0.0.0/8"), ip_network("fd00::/12")), **PEERS}
    with cache(net, peers=peers) as steered:
        steered.change(wide=1)
        assert steered.observe() == {"wide": 1, "client": 0, "other": 0}
        assert through(net) == [None, None]
        steered.change(client=1)
        assert through(net) == ["HIT", "HIT"]
        steered.change(wide=0)
        assert steered.observe() == {"wide": 0, "client": 1, "other": 0}
        assert through(net) == ["HIT", "HIT"]


def test_an_edge_does_not_come_back_to_itself(net):
    """It is a host of the network that is led, and its way to the origin leads over this host."""
    peers = {"remote": (ip_network("10.4.0.0/24"),)}
    with cache(net, edges=[HERE, FAR], peers=peers) as steered:
        steered.change(remote=1)
        assert steered.observe() == {"remote": 1}
        assert get(net, who="far")[1] is None
    with cache(net, edges=[HERE], peers=peers) as steered:
        assert steered.observe() == {"remote": 0.5}
        steered.change(remote=1)
        assert get(net, who="far")[1] == "HIT"


def test_an_edge_serves_its_prefixes_alone(net):
    some = CacheEdge(name="here", address=HERE.address, prefixes=["10.1.0.0/16"])
    with cache(net, edges=[some]) as steered:
        with pytest.raises(Refused, match="serves its prefixes; add one"):
            steered.change(other=1)
        steered.change(client=1)
        assert steered.observe()["client"] == 1
        assert through(net) == ["HIT", None]


def test_the_way_to_the_network_counts(net):
    """As seen from the network, over its own 80 ms, an edge at 0 ms instead of 80 is not much closer."""
    with cache(net, edges=[HERE], must_fall=0.6, probe={"client": "10.1.0.1:9"}) as steered:
        steered.change(client=1)
        steered.change(client=0)
    peers = {"remote": (ip_network("10.4.0.2/32"),)}
    with (
        cache(net, edges=[HERE], must_fall=0.6, probe={"remote": "10.4.0.2:9"}, peers=peers) as steered,
        pytest.raises(Refused, match="did not get closer"),
    ):
        steered.change(remote=1)
    unanswered = {"client": "10.1.0.77:9"}
    with cache(net, edges=[HERE], probe=unanswered, answer_timeout=0.5, tries=1) as steered:
        steered.change(client=1)
        assert counts(steered)["cache_probes_unanswered"] == 1


def test_only_our_tables_are_removed(net):
    host = net.hosts["host"]
    host.run("nft", "add", "table", "inet", "foreign")
    with cache(net) as steered:
        steered.change(client=1)
        assert host.call(CacheBackend.sweep, [steered.backend.resource]) == []
        assert host.call(CacheBackend.sweep, []) == ["nftables table inet scentd_steer_web"]
        assert steered.observe()["client"] == 0
    assert host.call(CacheBackend.remove_all) == []
    assert "table inet foreign" in rules(net)
    host.run("nft", "delete", "table", "inet", "foreign")


def test_peers_without_own_addresses_are_told(net):
    with (
        cache(net, peers={**PEERS, "copy": PEERS["client"]}) as steered,
        pytest.raises(Refused, match="peer copy has no addresses of its own"),
    ):
        steered.change(copy=1)


def test_what_is_odd_is_noted(tmp_path):
    (tmp_path / "log").write_text("")
    sections = [
        CacheResource(name=name, origin=ORIGINS, edge=[HERE], access_log=str(tmp_path / log))
        for name, log in (("a", "log"), ("b", "nothere"))
    ]
    notes = CacheBackend.notes(sections)
    assert [note.partition(";")[0] for note in notes] == [
        f"resource b: {tmp_path}/nothere is not there or cannot be read",
        "resource b: has the origin 10.3.0.2:80 of a",
        "resource b: has the origin [fd03::2]:80 of a",
    ]


def test_a_daemon_that_stops_does_not_wait(net):
    with cache(net) as steered:
        steered.backend.setting.closing.set()
        with pytest.raises(HostError, match="scentd stops"):
            steered.change(client=1)
        assert steered.observe()["client"] == 0


def test_nothing_stays_open(net):
    with cache(net) as steered:
        steered.change(client=1)
        before = os.listdir("/proc/self/fd")
        for _ in range(5):
            steered.observe()
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_the_engine_leads_networks_away_from_a_dead_edge_and_back(net):
    edge = net.servers["here"]

    def leads(*expected):
        try:
            return through(net) == [*expected]
        except OSError:  # nobody listens at the edge, and nobody has looked yet
            return False

    with cache(net) as steered:
        provider = Provider(steered.backend, lambda report: None)
        net.hosts["host"].call(provider.start, {})
        provider.want({"client": 1.0})
        until(lambda: leads("HIT", "HIT"))
        edge.stop()
        try:
            until(lambda: leads(None, None))
        finally:
            edge.start()
        until(lambda: leads("HIT", "HIT"))
        provider.close(give_back=True)
        assert leads(None, None)
