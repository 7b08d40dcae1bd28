import pytest
from caching import HERE, ORIGINS

from scentd.act.resources.cache_section import CacheResource
from scentd.config.schema import convert


def loaded(**fields):
    problems = []
    edge = fields.pop("edge", [{"name": "here", "address": ["192.0.2.9:80"]}])
    data = {"name": "x", "origin": ["192.0.2.1:80"], "edge": edge, **fields}
    convert(data, CacheResource, "resource[0]", problems, {})
    return "\n".join(problems)


def test_what_may_be_written():
    assert loaded() == ""
    both = [
        {"name": "here", "address": ["192.0.2.9:80", "[2001:db8::9]:80"], "region": "eu", "prefixes": ["10.0.0.0/8"]}
    ]
    assert loaded(origin=["192.0.2.1:80", "[2001:db8::1]:80"], edge=both, probe={"b": "10.1.0.7:443"}) == ""
    assert CacheResource(name="x", origin=["192.0.2.1:80"], edge=[HERE]).host_header == "192.0.2.1"
    assert CacheResource(name="x", origin=["192.0.2.1:81"], edge=[HERE]).host_header == "192.0.2.1:81"
    assert CacheResource(name="x", origin=ORIGINS, edge=[HERE]).on_exit == "give-back"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"maximum": 2.0}, "led to an edge (1) or not (0)"),
        ({"origin": []}, "resource[0].origin: needs one address, or one for each IP version"),
        ({"origin": ["192.0.2.1:80", "192.0.2.2:80"]}, "resource[0].origin: needs one address"),
        ({"origin": ["www.example.org:80"]}, "resource[0].origin: 'www.example.org' does not appear to be an IPv4"),
        ({"origin": ["192.0.2.1"]}, "resource[0].origin: "),
        ({"origin": ["192.0.2.1:0"]}, "is no address with a port; write addresses with ports"),
        ({"origin": ["2001:db8::1:80"]}, "is no address with a port"),
        ({"origin": ["127.0.0.1:80"]}, "127.0.0.1 cannot be reached from a network"),
        ({"edge": []}, "begin one with [[resource.edge]]"),
        ({"edge": [{"name": "e", "address": ["192.0.2.1:80"]}]}, "edge[0].address: 192.0.2.1:80 is the origin"),
        (
            {"edge": [{"name": "e", "address": ["[2001:db8::1]:80"]}]},
            "edge[0].address: has no IP version of the origin",
        ),
        ({"edge": [{"name": n, "address": ["192.0.2.9:80"]} for n in "ab"]}, "192.0.2.9:80 is that of a, too"),
        ({"edge": [{"name": "a", "address": [f"192.0.2.{n}:80"]} for n in (8, 9)]}, "resource[0].edge"),
        ({"edge": [{"name": "e", "address": ["192.0.2.9:80"], "prefixes": ["x"]}]}, "edge[0].prefixes"),
        ({"must_fall": 1.0}, "is a share; write 0.1"),
        ({"check": "logo.png"}, "write a path, such as /logo.png"),
        ({"check": "/a b"}, "write a path"),
        ({"site": "a\r\nb: c"}, "write a name as in the Host header"),
        ({"access_log": "access.log"}, "write it from the root on"),
        ({"probe": {"b": "10.1.0.7"}}, "resource[0].probe.b: "),
        ({"warm_timeout": "0s"}, "must be more than 0"),
        ({"tries": 0}, "tries"),
    ],
)
def test_mistakes_say_the_way_out(fields, expected):
    assert expected in loaded(**fields)
