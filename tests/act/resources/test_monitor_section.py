"""What may be written in a [[resource]] of kind monitor."""

import pytest

from scentd.act.resources.monitor import MonitorResource
from scentd.config.schema import convert


def loaded(**fields):
    problems = []
    convert({"name": "x", **fields}, MonitorResource, "resource[0]", problems, {})
    return "\n".join(problems)


def test_what_may_be_written():
    assert loaded() == ""
    assert loaded(mirror_to="mon0", interfaces=["eth0"], pcap_directory="/var/lib/scentd/captures") == ""
    assert MonitorResource(name="x").stricter == "more"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"maximum": 2.0}, "monitoring is on (1) or off (0)"),
        ({"mirror_to": "mon0"}, "goes with resource[0].interfaces"),
        ({"mirror_to": "mon0", "interfaces": ["mon0"]}, "would copy its own copies"),
        ({"mirror_to": 'm" accept', "interfaces": ["eth0"]}, "is no interface's name"),
        ({"pcap_directory": "captures"}, "write it from the root on"),
        ({"pcap_files": 1}, "pcap_files: "),
        ({"snaplen": 70000}, "snaplen: "),
        ({"start_timeout": "0s"}, "must be more than 0"),
    ],
)
def test_mistakes_say_the_way_out(fields, expected):
    assert expected in loaded(**fields)
