"""Attaches programs to interfaces and detaches them: by tcx links where the kernel has them, else by clsact.

Both outlive the process. A program of ours is replaced so that every packet meets either the old or the new one.
Links are for few interfaces: after each new or removed link the kernel waits for all processors (synchronize_rcu() in
tcx_entry_sync(), under the lock of all interfaces), 8 to 12 ms here. A filter costs 10 us, and waits for nothing.
Programs of others are left alone. A new tcx link of ours goes before all others, because a program that ends the chain
with TC_ACT_OK would hide packets from it. clsact filters run after all links, in the order of their priorities. Our
programs return TC_ACT_UNSPEC, so that the others run, too.

Everything acts on the calling thread's network namespace.
"""

from __future__ import annotations

import array
import errno
import fcntl
import logging
import socket
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from scentd.core.offload.coverage import Direction, Interface, Side
from scentd.datapath.offload import clsact
from scentd.datapath.offload.bpfmap import ENOTSUPP
from scentd.datapath.offload.clsact import NoInterface
from scentd.datapath.offload.libbpf import BpfError
from scentd.datapath.offload.tcx import Links
from scentd.system import rtnetlink

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
        self.has_links = force != "clsact"  # as far as is known
        self._filtered: set[Side] | None = None  # sides with a filter of ours, or of an interface that is gone

    def attach_all(self, programs: Mapping[Side, int], linked: Collection[int]) -> dict[Side, Mechanism]:
        """Attach programs, or replace ours by them. Return the mechanism of each side; those of gone interfaces lack.

        Sides that have a link of ours, and those of the interfaces in `linked`, get a link. The others get a filter,
        because a new link makes the kernel wait for some milliseconds.
        """
        linked = linked if self.has_links else ()
        by_link = {side for side in programs if side[0] in linked or self._links.exists(*side)}
        filtered = {side: fd for side, fd in programs.items() if side not in by_link}
        refused = clsact.attach_all(filtered)
        for side, error in refused.items():
            if isinstance(error, NoInterface):
                log.info("offload: %s", error)
            elif self.has_links:
                by_link.add(side)
            else:
                raise error
        attached: dict[Side, Mechanism] = dict.fromkeys(filtered.keys() - refused.keys(), "clsact")
        if self._filtered is not None:
            self._filtered |= attached.keys()
        for side in sorted(by_link):
            try:
                attached[side] = self.attach(*side, programs[side])
            except NoInterface as error:  # the watch tells
                log.info("offload: %s", error)
        return attached

    def attach(self, ifindex: int, direction: Direction, program_fd: int) -> Mechanism:
        """Attach a program, or replace ours by it. Return the mechanism. Raises NoInterface.

        Two verifiers on one packet would refuse it. So a filter goes before the link comes; meanwhile the queue judges.
        """
        side: Side = ifindex, direction
        if self.has_links:
            if self._filtered is None:
                self._filtered = clsact.attached_sides()
            filtered = side in self._filtered
            if filtered and direction == "ingress":
                clsact.remove_filters([side])
            if self._attach_link(ifindex, direction, program_fd):
                if filtered and direction == "egress":
                    clsact.remove_filters([side])
                if filtered:
                    self._links.note_qdisc(ifindex)
                self._filtered.discard(side)
                return "tcx"
        if direction == "ingress":
            self._links.detach(ifindex, direction)
        clsact.attach(ifindex, direction, program_fd)
        if direction == "egress":
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
            self.has_links = False
        return self.has_links

    def detach(self, ifindex: int, direction: Direction) -> None:
        """Detach our program, by either mechanism; no program, or no such interface, is no error."""
        self.detach_all([(ifindex, direction)])

    def detach_all(self, sides: Collection[Side]) -> None:
        """Detach our programs from these sides, by either mechanism; having none is no error."""
        for side in sides:
            self._links.detach(*side)
        if sides:
            noted = self._links.noted_qdiscs() & {ifindex for ifindex, _ in sides}
            clsact.detach_all(sides, noted)
            for ifindex in noted:
                self._links.forget_qdisc(ifindex)

    def forget(self, side: Side) -> None:
        """Remove what is left of a link whose interface is gone."""
        self._links.forget(*side)
        self._links.forget_qdisc(side[0])

    def attached(self) -> dict[Side, Mechanism]:
        """The sides that have a program of scentd, whichever process attached it, and by what."""
        self._filtered = clsact.attached_sides()
        filtered: dict[Side, Mechanism] = dict.fromkeys(self._filtered, "clsact")
        return filtered | dict.fromkeys(self._links.attached_sides(), "tcx")

    def attached_sides(self) -> set[Side]:
        """The sides that have a program of scentd, by either mechanism, whichever process attached it."""
        return set(self.attached())

    def is_foreign(self) -> bool:
        """Whether the directory belongs to a daemon in another network namespace."""
        return self._links.is_foreign()

    def remove(self) -> None:
        """Remove every link pinned in the directory and every filter of ours in this namespace."""
        noted = self._links.noted_qdiscs()
        self._links.remove()
        clsact.remove(noted)
        for ifindex in noted:
            self._links.forget_qdisc(ifindex)


def interfaces(links: Collection[Any]) -> list[Interface]:
    """The interfaces that this host's packets use, and the ports of bridges whose packets no queue sees.

    Not loopback, nor the ports of other bridges, bonds and teams.
    """
    bridges = {link["index"]: link for link in links if kind_of(link) == "bridge"}
    unseen = {index for index, bridge in bridges.items() if not is_filtered(bridge.get_attr("IFLA_LINKINFO"))}
    below = {link.get_attr("IFLA_LINK") for link in links if shares_packets(link)}
    return [
        Interface(
            link["index"],
            link.get_attr("IFLA_IFNAME"),
            None if link["index"] in below else header_of(link),
            (link.get_attr("IFLA_GSO_MAX_SIZE") or 0) > LARGEST_SEND,
            link.get_attr("IFLA_MASTER") in bridges,
        )
        for link in links
        if not link["flags"] & IFF_LOOPBACK and (is_free(link) or link.get_attr("IFLA_MASTER") in unseen)
    ]


def read_interfaces() -> list[Interface]:
    """interfaces() of this namespace. Raises HostError."""
    return interfaces(rtnetlink.links().values())


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
