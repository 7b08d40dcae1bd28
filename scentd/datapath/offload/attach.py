"""Attaches programs to interfaces and detaches them: by tcx links where the kernel has them, else by clsact.

Both outlive the process. A program of ours is replaced so that every packet meets either the old or the new one.
Programs of others are left alone. A new tcx link of ours goes before all others, because a program that ends the chain
with TC_ACT_OK would hide packets from it. clsact filters run after all links, in the order of their priorities. Our
programs return TC_ACT_UNSPEC, so that the others run, too.

Everything acts on the calling thread's network namespace, and cannot run on a thread with a running event loop.
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import socket
import struct
from pathlib import Path
from typing import Any, Literal

from scentd.core.offload.coverage import Direction, Interface, Side
from scentd.datapath.offload import clsact
from scentd.datapath.offload.bpfmap import ENOTSUPP
from scentd.datapath.offload.clsact import NoInterface
from scentd.datapath.offload.libbpf import BpfError
from scentd.datapath.offload.tcx import Links

log = logging.getLogger(__name__)

Mechanism = Literal["tcx", "clsact"]

NO_TCX = {errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP}
IFF_LOOPBACK = 8
LARGEST_SEND = 65536  # the kernel's GSO_LEGACY_MAX_SIZE
MACVLAN_PASSTHRU = 8  # linux/if_link.h
SIOCETHTOOL, ETHTOOL_GTXCSUM = 0x8946, 0x16  # linux/sockios.h, linux/ethtool.h
# Bytes in front of the IP header that a program sees, by ARPHRD_*: Ethernet; NONE (tun, WireGuard), TUNNEL, TUNNEL6,
# SIT, PPP, RAWIP. Not IPGRE: without a fixed remote the outer header is the link layer.
HEADERS = {1: 14, 65534: 0, 768: 0, 769: 0, 776: 0, 512: 0, 519: 0}


class Attacher:
    """Programs on the interfaces of this namespace. Links are pinned in `directory`, which is on a BPF file system.

    `force` allows one mechanism alone. Every method may raise HostError.
    """

    def __init__(self, directory: str, force: Mechanism | None = None) -> None:
        self._links = Links(directory)
        self._force = force
        self._tcx = force != "clsact"
        self._filtered: set[Side] | None = None  # sides with a filter of ours; None: not read yet

    def attach(self, ifindex: int, direction: Direction, program_fd: int) -> Mechanism:
        """Attach a program, or replace ours by it. Return the mechanism. Raises NoInterface.

        A link comes first and without any netlink request: the interface may carry packets already.
        """
        side: Side = ifindex, direction
        if self._tcx and self._attach_link(ifindex, direction, program_fd):
            if self._filtered is None:
                self._filtered = clsact.attached_sides()
            if side in self._filtered:
                clsact.detach(ifindex, direction)
                self._filtered.discard(side)
            return "tcx"
        clsact.attach(ifindex, direction, program_fd)
        self._links.detach(ifindex, direction)
        if self._filtered is not None:
            self._filtered.add(side)
        return "clsact"

    def _attach_link(self, ifindex: int, direction: Direction, program_fd: int) -> bool:
        """Attach as a link. False if this kernel has no tcx links; later calls then use clsact at once."""
        try:
            self._links.attach(ifindex, direction, program_fd)
        except BpfError as error:
            if error.code == errno.ENODEV:
                raise NoInterface(f"interface {ifindex} is gone") from error
            if self._force is not None or error.code not in NO_TCX:
                raise
            log.info("no tcx links here (%s): clsact filters instead", error)
            self._tcx = False
        return self._tcx

    def detach(self, ifindex: int, direction: Direction) -> None:
        """Detach our program, by either mechanism; no program, or no such interface, is no error."""
        self._links.detach(ifindex, direction)
        clsact.detach(ifindex, direction)

    def attached_sides(self) -> set[Side]:
        """The sides that have a program of scentd, by either mechanism, whichever process attached it."""
        return self._links.attached_sides() | clsact.attached_sides()

    def is_foreign(self) -> bool:
        """Whether the directory belongs to a daemon in another network namespace."""
        return self._links.is_foreign()

    def remove(self) -> None:
        """Remove every link pinned in the directory and every filter of ours in this namespace."""
        self._links.remove()
        clsact.remove()


def interfaces() -> list[Interface]:
    """The interfaces that this host's packets use, and the ports of bridges whose packets no queue sees.

    Not loopback, nor the ports of other bridges, bonds and teams. Raises HostError.
    """
    with clsact.netlink() as ip:
        links = list(ip.get_links())
    bridges = {link["index"]: link for link in links if kind_of(link) == "bridge"}
    unseen = {index for index, bridge in bridges.items() if not is_filtered(bridge.get_attr("IFLA_LINKINFO"))}
    below = {link.get_attr("IFLA_LINK") for link in links if shares_packets(link)}
    return [
        Interface(
            link["index"],
            link.get_attr("IFLA_IFNAME"),
            None if link["index"] in below else header_of(link),
            kind_of(link) == "vrf",
            (link.get_attr("IFLA_GSO_MAX_SIZE") or 0) > LARGEST_SEND,
            link.get_attr("IFLA_MASTER") in bridges,
        )
        for link in links
        if not link["flags"] & IFF_LOOPBACK and (is_free(link) or link.get_attr("IFLA_MASTER") in unseen)
    ]


def kind_of(link: Any) -> str | None:
    info = link.get_attr("IFLA_LINKINFO")
    return None if info is None else info.get_attr("IFLA_INFO_KIND")


def shares_packets(link: Any) -> bool:
    """Whether the interface gets the packets of its lower interface unchanged: programs on both would verify them."""
    if link.get_attr("IFLA_LINK_NETNSID") is not None:
        return False
    if kind_of(link) == "macvlan":
        data = link.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
        return data is not None and data.get_attr("IFLA_MACVLAN_MODE") in ("passthru", MACVLAN_PASSTHRU)
    return kind_of(link) == "ipvlan"


def header_of(link: Any) -> int | None:
    """Bytes before the IP header, None if unknown.

    Also None for a filtered bridge (br_netfilter): iptables sees its packets at the ports, before a program would.
    """
    if kind_of(link) == "bridge" and is_filtered(link.get_attr("IFLA_LINKINFO")):
        return None
    return HEADERS.get(link["ifi_type"])


def is_filtered(bridge: Any) -> bool:
    own = bridge.get_attr("IFLA_INFO_DATA")
    programs = ("iptables", "ip6tables")
    if own is not None and any(own.get_attr(f"IFLA_BR_NF_CALL_{p.upper()}") for p in programs):
        return True
    switches = [Path(f"/proc/sys/net/bridge/bridge-nf-call-{p}") for p in programs]
    return any(switch.exists() and switch.read_text().strip() == "1" for switch in switches)


def finishes_checksums(name: str) -> bool:
    """Whether the device takes packets with unfinished checksums.

    For other devices the kernel segments a large UDP send (UDP_SEGMENT) in software, and refuses the send if a program
    has lengthened it: the application gets ENOMEM (measured on 6.18).
    """
    command = array.array("I", [ETHTOOL_GTXCSUM, 0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            fcntl.ioctl(end, SIOCETHTOOL, struct.pack("16sQ16x", name.encode(), command.buffer_info()[0]))
    except OSError as error:
        log.debug("interface %s: no answer about its checksums: %s", name, error.strerror)
        return False
    return bool(command[1])


def is_free(link: Any) -> bool:
    """Whether no master takes the interface's packets. A VRF does not: it only chooses their routes."""
    if not link.get_attr("IFLA_MASTER"):
        return True
    info = link.get_attr("IFLA_LINKINFO")
    return info is not None and info.get_attr("IFLA_INFO_SLAVE_KIND") == "vrf"
