"""Throw-away networks for the tests: namespaces, veth pairs, bridges, addresses.

    with Topology("rules") as net:
        a, b = net.host("a"), net.host("b")
        net.link(a, b, ipv4="10.1.0.0/24", ipv6="fd00:1::/64")
        a.run("ping", "-c1", b.ipv4)

Leaving the block ends what was started in the hosts and removes everything.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_network
from typing import Any, TypeVar

from pyroute2 import netns

Result = TypeVar("Result")


class Host:
    """One namespace. `ipv4` and `ipv6` are its first addresses, `interfaces` its links in order."""

    def __init__(self, namespace: str, name: str) -> None:
        self.namespace = namespace
        self.name = name
        self.ipv4 = ""
        self.ipv6 = ""
        self.interfaces: list[str] = []
        self.started: list[subprocess.Popen[Any]] = []

    def argv(self, *argv: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *argv]

    def run(self, *argv: str, check: bool = True, timeout: float = 60, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a command to its end. Its standard error is in the exception of a failure."""
        done = subprocess.run(self.argv(*argv), capture_output=True, text=True, timeout=timeout, check=False, **more)
        if check and done.returncode:
            raise AssertionError(f"{self.name}: {' '.join(argv)}: status {done.returncode}: {done.stderr}{done.stdout}")
        return done

    def out(self, *argv: str) -> str:
        """What a command prints."""
        return self.run(*argv).stdout

    def start(self, *argv: str, **more: Any) -> subprocess.Popen[Any]:
        """Start a command that is ended with the topology at the latest."""
        process = subprocess.Popen(self.argv(*argv), **more)
        self.started.append(process)
        return process

    def call(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """The function's result, run in a thread of its own that has entered the namespace."""
        box: list[Any] = []

        def inside() -> None:
            try:
                netns.setns(self.namespace)
                box.extend([function(*args, **kwargs), None])
            except BaseException as error:  # raised again in the caller's thread
                box.extend([None, error])

        thread = threading.Thread(target=inside, name=f"in {self.name}")
        thread.start()
        thread.join()
        if box[1] is not None:
            raise box[1]
        return box[0]

    def sysctl(self, **values: Any) -> None:
        """`net_ipv4_ip_forward=1` sets net.ipv4.ip_forward; two underscores stand for one."""
        names = {k.replace("__", "\0").replace("_", ".").replace("\0", "_"): v for k, v in values.items()}
        self.run("sysctl", "-qw", *(f"{name}={value}" for name, value in names.items()))

    def ip(self, *lines: str) -> None:
        """`ip` commands, one a line, without the word ip."""
        argv = ["ip", "-n", self.namespace, "-batch", "-"]
        done = subprocess.run(argv, input="\n".join(lines), capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{self.name}: ip: {done.stderr.strip()} in {lines}")


class Topology:
    """Context manager. Names are made unique by `tag` and the process id, so that runs may overlap."""

    def __init__(self, tag: str) -> None:
        self.prefix = f"sc{tag}{os.getpid()}-"
        self.hosts: dict[str, Host] = {}
        self.numbers = itertools.count()

    def __enter__(self) -> Topology:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            for process in host.started:
                process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        with suppress(OSError):
                            stream.close()
        for host in self.hosts.values():
            subprocess.run(["ip", "netns", "del", host.namespace], check=False)

    def host(self, name: str, forward: bool = False) -> Host:
        host = Host(self.prefix + name, name)
        subprocess.run(["ip", "netns", "add", host.namespace], check=True)
        self.hosts[name] = host
        # Without duplicate address detection an IPv6 address can be used at once.
        host.sysctl(
            net_ipv6_conf_all_accept__dad=0,
            net_ipv6_conf_default_accept__dad=0,
            net_ipv4_ip__forward=int(forward),
            net_ipv6_conf_all_forwarding=int(forward),
        )
        host.ip("link set lo up")
        return host

    def link(self, a: Host, b: Host, ipv4: str = "", ipv6: str = "", mtu: int = 1500) -> tuple[str, str]:
        """A veth pair; a gets the first address of each prefix, b the second. Returns the interfaces' names."""
        n = next(self.numbers)
        ends = f"{b.name}{n}", f"{a.name}{n}"  # each is named after the other end
        a.ip(f"link add {ends[0]} mtu {mtu} type veth peer name {ends[1]} mtu {mtu} netns {b.namespace}")
        for number, (host, end) in enumerate(((a, ends[0]), (b, ends[1])), start=1):
            host.ip(f"link set {end} up")
            self.address(host, end, number, ipv4, ipv6)
        return ends

    def bridge(self, hosts: list[Host], ipv4: str = "", ipv6: str = "", mtu: int = 1500) -> Host:
        """All hosts on one Ethernet, a bridge in a namespace of its own; addresses in the order of the list."""
        n = next(self.numbers)
        switch = self.host(f"sw{n}")
        switch.ip("link add br0 type bridge", f"link set br0 mtu {mtu} up")
        for number, host in enumerate(hosts, start=1):
            end = f"lan{n}"
            host.ip(f"link add {end} mtu {mtu} type veth peer name {host.name} mtu {mtu} netns {switch.namespace}")
            host.ip(f"link set {end} up")
            switch.ip(f"link set {host.name} master br0 up")
            self.address(host, end, number, ipv4, ipv6)
        return switch

    def address(self, host: Host, interface: str, number: int, ipv4: str, ipv6: str) -> None:
        """Give the interface the number-th address of each prefix."""
        host.interfaces.append(interface)
        for prefix, attribute in ((ipv4, "ipv4"), (ipv6, "ipv6")):
            if prefix:
                network = ip_network(prefix)
                address = str(network[number])
                host.ip(f"addr add {address}/{network.prefixlen} dev {interface}")
                if not getattr(host, attribute):
                    setattr(host, attribute, address)
