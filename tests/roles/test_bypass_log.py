import asyncio

from scentd.config.sections import Config
from scentd.datapath.host import bypass
from scentd.datapath.host.bypass import Bypass
from scentd.errors import HostError
from scentd.roles.bypass_log import BypassLog


def test_each_is_told_once(caplog, monkeypatch):
    one, other = Bypass("bridge br0", "do this"), Bypass("flow table f", "do that")
    made, found = BypassLog(), [one]
    monkeypatch.setattr(bypass, "read", lambda _: list(found))
    asyncio.run(made.look(Config(), offloaded=False))
    found.append(other)
    asyncio.run(made.look(Config(), offloaded=False))
    assert made.names() == ["bridge br0", "flow table f"]
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["do this", "do that"]
    asyncio.run(made.look(Config(), offloaded=True))
    assert made.names() == []


def test_a_host_that_cannot_be_seen_is_no_failure(monkeypatch):
    def refuse(_):
        raise HostError("no netlink")

    monkeypatch.setattr(bypass, "read", refuse)
    made = BypassLog()
    asyncio.run(made.look(Config(), offloaded=False))
    assert made.names() == []
