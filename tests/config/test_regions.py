"""network.regions: what may be written."""

from ipaddress import ip_address

import pytest

from scentd.config.regions import region_map
from scentd.errors import ConfigError
from scentd.kinds import config_from


def load(regions):
    return config_from({"network": [{"name": "n", "key_file": "k", "regions": regions}]}).network[0].regions


def test_regions_may_nest_and_repeat_themselves():
    regions = {"eu-west": ["10.2.0.0/16", "10.2.0.0/16", "fd00::/16"], "eu-west-1a": ["10.2.3.0/24"]}
    assert load(regions) == regions


@pytest.mark.parametrize(
    ("regions", "mistake"),
    [
        ({"a;b": ["10.0.0.0/8"]}, "a;b: write letters, digits"),
        ({"": ["10.0.0.0/8"]}, "write letters, digits"),
        ({"a": ["10.0.0.1/8"]}, r"a\[0\]: 10.0.0.1/8 has host bits set"),
        ({"a": ["10.0.0.0/8"], "b": ["10.0.0.0/8"]}, "b: 10.0.0.0/8 is of a, too; take it away from one"),
        ({f"r{n}": [] for n in range(25)}, "more than 24; join some"),
    ],
)
def test_mistakes(regions, mistake):
    with pytest.raises(ConfigError, match=rf"network\[0\].regions.*{mistake}"):
        load(regions)


def test_the_longest_prefix_says_the_region():
    found = region_map({"east": ["10.2.0.0/16", "fd02::/16"], "here": ["10.2.3.0/24"]})
    addresses = ("10.2.3.4", "10.2.4.4", "fd02::1", "10.3.0.1")
    assert [found.get(ip_address(a).packed) for a in addresses] == ["here", "east", "east", None]
