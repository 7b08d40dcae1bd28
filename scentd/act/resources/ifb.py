"""Leads the packets that come in at an interface through a device of the kernel (ifb), where their rate can be set.

Filters behind all others lead there, so programs on what comes in, such as our verifier, have done their work before.
The kernel asks none of them, nor nftables' ingress hook, when the packets come back. The filters go before the device
goes: without it they would drop everything.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Iterable

from scentd.act.resources import tc
from scentd.act.resources.backend import Refused
from scentd.errors import HostError
from scentd.system import rtnetlink
from scentd.system.rtnetlink import TC, NetlinkRequest

NAME = "sc-in"  # with the index of the interface behind it
IFF_UP = 1
QUEUE_LENGTH = 1000  # packets; the kernel's own default of 32 loses most of a burst
HARMLESS = (0, errno.EEXIST)
GONE = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


def find(index: int) -> int | None:
    """The device to which all packets that come in at this interface are led; None if any are not."""
    device = device_of(index)
    link = None if device is None else rtnetlink.links().get(device)
    up = link is not None and link["flags"] & IFF_UP
    return device if up and redirects(index) == {4: device, 6: device} else None


def device_of(index: int) -> int | None:
    try:
        return socket.if_nametoindex(f"{NAME}{index}")
    except OSError:
        return None


def redirects(index: int) -> dict[int, int]:
    """By IP version the device to which what comes in is led."""
    [found] = rtnetlink.dump(tc.RTM_GETTFILTER, [TC.pack(0, index, 0, tc.INGRESS, 0)])
    return dict(pair for body in found if (pair := tc.read_redirect(body)) is not None)


def make(index: int, interface: str) -> int:
    """Return the device; make what is missing. Raises HostError, Refused."""
    device = find(index)
    if device is not None:
        return device
    make_device(f"{NAME}{index}")
    device = device_of(index)
    if device is None:
        raise HostError(f"interface {interface}: its device {NAME}{index} has disappeared")
    found = redirects(index)
    requests = [tc.new_clsact(index)]
    for version in (4, 6):
        if found.get(version) != device:
            requests += [tc.del_redirect(index, version)] if version in found else []
            requests.append(tc.new_redirect(index, version, device))
    for code in rtnetlink.perform(requests):
        if code not in HARMLESS:
            raise HostError(f"interface {interface}: what comes in cannot be led to {NAME}{index}: {os.strerror(code)}")
    return device


def make_device(name: str) -> None:
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as ipr:
            if not ipr.link_lookup(ifname=name):
                ipr.link("add", ifname=name, kind="ifb", txqlen=QUEUE_LENGTH, num_tx_queues=1, num_rx_queues=1)
            ipr.link("set", index=ipr.link_lookup(ifname=name)[0], state="up")
    except NetlinkError as error:
        if error.code == errno.EOPNOTSUPP:
            raise Refused('this kernel has no ifb, which direction = "in" needs; load the module ifb') from error
        hint = "; scentd needs CAP_NET_ADMIN" if error.code == errno.EPERM else ""
        raise HostError(f"device {name}: {error}{hint}") from error


def remove_empty_clsact(indexes: Iterable[int]) -> None:
    """Remove the qdiscs for filters that have none. An interface loses packets for a moment, so only at the end."""
    for index in indexes:
        parents = [TC.pack(0, index, 0, parent, 0) for parent in (tc.INGRESS, tc.EGRESS)]
        if not any(rtnetlink.dump(tc.RTM_GETTFILTER, parents)):
            rtnetlink.perform([NetlinkRequest(tc.RTM_DELQDISC, 0, tc.clsact_body(index))])


def devices() -> set[str]:
    """The names of those devices that there are."""
    return {name for name in rtnetlink.names_of_kind("ifb") if name.startswith(NAME)}


def remove_all(besides: Collection[str] = ()) -> list[str]:
    """Remove the devices of this namespace and what leads to them; return their names. `besides`: interfaces."""
    from pyroute2 import IPRoute, NetlinkError

    names = {index: name for index, name in socket.if_nameindex() if name not in besides}
    kept = {f"{NAME}{index}" for index, name in socket.if_nameindex() if name in besides}
    having = {q.interface for q in rtnetlink.qdiscs() if q.parent == tc.CLSACT}
    sides = sorted(index for index in having & names.keys() if redirects(index))
    rtnetlink.perform([tc.del_redirect(index, version) for index in sides for version in (4, 6)])
    remove_empty_clsact(sides)
    ours = sorted(devices() - kept)
    with IPRoute() as ipr:
        for name in ours:
            try:
                ipr.link("del", ifname=name)
            except NetlinkError as error:
                if error.code not in GONE:
                    raise HostError(f"device {name}: {error}") from error
    found = [f"what comes in at {names[index]}, led to {NAME}{index}" for index in sides]
    return found + [f"device {name}" for name in ours]
