import asyncio

from scentd.config.sections import Config, Stamp
from scentd.datapath.host import bypass
from scentd.datapath.host.bypass import Bypass
from scentd.errors import HostError
from scentd.roles.bypass_log import BypassLog


def test_each_is_told_once(caplog, monkeypatch):
    one, other = Bypass("bridge br0", "do this"), Bypass("flow table f", "do that")
    made, found = BypassLog(), [one]
    monkeypatch.setattr(bypass, "read", lambda _: list(found))
    asyncio.run(made.look(Config(), None))
    found.append(other)
    asyncio.run(made.look(Config(), None))
    assert made.names() == ["bridge br0", "flow table f"]
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["do this", "do that"]
    asyncio.run(made.look(Config(), ["tap0"]))
    assert made.names() == [], "nothing that it forwards is to be stamped"
    asyncio.run(made.look(Config(stamp=Stamp(forwarded=True)), ["tap0"]))
    assert [name.partition(":")[0] for name in made.names()] == ["port tap0"]


def test_a_host_that_cannot_be_seen_is_no_failure(monkeypatch):
    def refuse(_):
        raise HostError("no netlink")

    monkeypatch.setattr(bypass, "read", refuse)
    made = BypassLog()
    asyncio.run(made.look(Config(), None))
    assert made.names() == []
