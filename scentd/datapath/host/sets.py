"""The kernel's address sets (ipset hash:net) that the iptables rules match.

Three sets of our own for each family: `scentd-local4` (prefixes of our networks),
`scentd-stamp4` (peers that we stamp to), `scentd-verify4` (peers that we verify),
and the same with 6. A reload builds each anew beside the old one and swaps the
two in one step: no packet meets a half-filled set, and no rule is touched.

pyroute2's sync sockets do not work inside a running asyncio loop: call from a thread.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from ipaddress import ip_network
from itertools import chain

from pyroute2 import IPSet
from pyroute2.ipset import NoSuchObject
from pyroute2.netlink import NLA_F_NESTED, NLA_F_NET_BYTEORDER, NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.nfnetlink.ipset import IPSET_CMD_ADD, IPSET_ERR_BUSY, IPSET_FLAG_LIST_HEADER

from scentd.config.sections import Config, stamped_peers
from scentd.errors import HostError
from scentd.prefix import Prefix, prefixes

log = logging.getLogger(__name__)

KINDS = ("local", "stamp", "verify")
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}

# One message holds at most 65,535 bytes of entries (the length of a netlink attribute has 16 bits).
BATCH = 1500
MAX_ELEMENTS = 65536  # the kernel's own default; a larger set is made as large as it must be

# include/uapi/linux/netfilter/ipset/ip_set.h: one entry is DATA { IP { address }, CIDR }.
ATTR_IP, ATTR_CIDR, ATTR_DATA = 1, 3, 7
NESTED_DATA, NESTED_IP = ATTR_DATA | NLA_F_NESTED, ATTR_IP | NLA_F_NESTED
ENTRY = {
    4: struct.Struct("=HHHHHH4sHHB3x"),
    6: struct.Struct("=HHHHHH16sHHB3x"),
}


class BulkMessage(nfgen_msg):
    """IPSET_CMD_ADD with its entries as bytes: pyroute2 takes 80 us to encode one, a Struct 1 us."""

    nla_map = (
        (1, "IPSET_ATTR_PROTOCOL", "uint8"),
        (2, "IPSET_ATTR_SETNAME", "asciiz"),
        (8, "IPSET_ATTR_ADT", "cdata", NLA_F_NESTED),
        (9, "IPSET_ATTR_LINENO", "be32"),
    )


def name(kind: str, family: int) -> str:
    """The set's name: name("stamp", 4) is "scentd-stamp4"."""
    return f"scentd-{kind}{family}"


def temporary(kind: str, family: int) -> str:
    return f"scentd-tmp-{kind}{family}"


def contents(config: Config) -> dict[str, frozenset[Prefix]]:
    """The prefixes of each set, by name; all six sets are listed, empty or not."""
    by_kind: dict[str, Iterable[Prefix]] = {
        "local": chain.from_iterable(prefixes(n.addresses) for n in config.network),
        "stamp": chain.from_iterable(prefixes(p.addresses) for p in stamped_peers(config)),
        "verify": chain.from_iterable(prefixes(p.addresses) for p in config.peer if p.verify),
    }
    sets: dict[str, set[Prefix]] = {name(kind, family): set() for kind in KINDS for family in FAMILIES}
    for kind, members in by_kind.items():
        for prefix in members:
            sets[name(kind, prefix.version)].update(halves(prefix))
    return {key: frozenset(value) for key, value in sets.items()}


def halves(prefix: Prefix) -> tuple[Prefix, ...]:
    """The prefix as hash:net takes it: the kernel refuses 0.0.0.0/0, but takes its two /1."""
    return tuple(prefix.subnets()) if prefix.prefixlen == 0 else (prefix,)


def entry(prefix: Prefix) -> bytes:
    """The netlink attribute of one element."""
    address = prefix.network_address.packed
    ip_length = 4 + len(address)
    return ENTRY[prefix.version].pack(
        *(
            4 + 4 + ip_length + 8,
            NESTED_DATA,
        ),  # a length includes the header, but not the padding after the last attribute
        *(4 + ip_length, NESTED_IP),
        *(ip_length, (1 if prefix.version == 4 else 2) | NLA_F_NET_BYTEORDER, address),
        *(5, ATTR_CIDR, prefix.prefixlen),
    )


def apply(config: Config) -> None:
    """Make the kernel's sets equal to the configuration, each in one step. Raises HostError."""
    by_name = contents(config)
    with ipset_socket() as ipset:
        for kind in KINDS:
            for family in FAMILIES:
                replace(ipset, kind, family, by_name[name(kind, family)])


def replace(ipset: IPSet, kind: str, family: int, elements: frozenset[Prefix]) -> None:
    """Build the set under its temporary name, swap it with the one in use, destroy the old one."""
    new, current = temporary(kind, family), name(kind, family)
    destroy(ipset, new)  # left by a crash
    create(ipset, new, family, len(elements))
    fill(ipset, new, elements)
    try:
        ipset.swap(new, current)
        ipset.destroy(new)
    except NetlinkError:
        if exists(ipset, current):
            raise
        ipset.rename(new, current)


def create(ipset: IPSet, set_name: str, family: int, count: int) -> None:
    ipset.create(
        set_name,
        stype="hash:net",
        family=FAMILIES[family],
        maxelem=max(MAX_ELEMENTS, count),
        hashsize=max(64, count // 2),  # spares the kernel the doublings on the way
    )


def fill(ipset: IPSet, set_name: str, elements: frozenset[Prefix]) -> None:
    entries = [entry(prefix) for prefix in elements]
    for start in range(0, len(entries), BATCH):
        message = BulkMessage()
        message["attrs"] = [
            ["IPSET_ATTR_PROTOCOL", ipset._proto_version],
            ["IPSET_ATTR_SETNAME", set_name],
            ["IPSET_ATTR_LINENO", 0],  # the kernel requires it with ADT
            ["IPSET_ATTR_ADT", b"".join(entries[start : start + BATCH])],
        ]
        # IPSet.add() sends single entries only, through the same `request`.
        ipset._run_with_cleanup(ipset.asyncore.request, message, IPSET_CMD_ADD, NLM_F_REQUEST | NLM_F_ACK)


def remove() -> None:
    """Destroy our sets; having none is no error. Raises HostError while rules use them: remove the rules first."""
    with ipset_socket() as ipset:
        for kind in KINDS:
            for family in FAMILIES:
                destroy(ipset, temporary(kind, family))
                destroy(ipset, name(kind, family))


def destroy(ipset: IPSet, set_name: str) -> None:
    try:
        ipset.destroy(set_name)
    except NoSuchObject:
        log.debug("%s: not there", set_name)


def exists(ipset: IPSet, set_name: str) -> bool:
    try:
        list(ipset.headers(set_name))
    except NoSuchObject:
        return False
    return True


def read() -> dict[str, frozenset[Prefix]]:
    """The elements of each set that exists, by name. Takes about 0.1 ms an element."""
    result: dict[str, frozenset[Prefix]] = {}
    with ipset_socket() as ipset:
        for kind in KINDS:
            for family in FAMILIES:
                if exists(ipset, name(kind, family)):
                    result[name(kind, family)] = frozenset(elements(ipset, name(kind, family)))
    return result


def elements(ipset: IPSet, set_name: str) -> Iterator[Prefix]:
    for message in ipset.list(set_name):
        adt = message.get_attr("IPSET_ATTR_ADT")
        for data in adt.get_attrs("IPSET_ATTR_DATA") if adt is not None else ():
            ip = data.get_attr("IPSET_ATTR_IP_FROM") or data.get_attr("IPSET_ATTR_IP")
            address = ip.get_attr("IPSET_ATTR_IPADDR_IPV4") or ip.get_attr("IPSET_ATTR_IPADDR_IPV6")
            length = data.get_attr("IPSET_ATTR_CIDR")
            yield ip_network(address if length is None else f"{address}/{length}")


def is_applied(config: Config) -> bool:
    """Whether the kernel has the configuration's sets, by their sizes: to read them takes long. Raises HostError."""
    with ipset_socket() as ipset:
        found = {}
        for message in ipset.list(flags=IPSET_FLAG_LIST_HEADER):
            data = message.get_attr("IPSET_ATTR_DATA")
            size = data.get_attr("IPSET_ATTR_ELEMENTS") if data is not None else None
            found[message.get_attr("IPSET_ATTR_SETNAME")] = size
    return all(found.get(set_name) == len(elements) for set_name, elements in contents(config).items())


@contextmanager
def ipset_socket() -> Iterator[IPSet]:
    """An ipset socket; the kernel's refusals become HostError."""
    try:
        with IPSet() as ipset:
            yield ipset
    except NetlinkError as error:
        raise HostError(f"ipset: {reason(error)}") from error


def reason(error: NetlinkError) -> str:
    if error.code in (errno.EPERM, errno.EACCES):
        return "not allowed; scentd needs CAP_NET_ADMIN"
    if error.code == IPSET_ERR_BUSY:
        return "a set is still used by a rule; remove the rules first (scentd does: rules, then sets)"
    if error.code in (errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.EINVAL):
        return f"{error}; the kernel needs ip_set and ip_set_hash_net (CONFIG_IP_SET_HASH_NET)"
    return f"the kernel refused: {error}"
