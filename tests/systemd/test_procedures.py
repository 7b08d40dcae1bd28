"""The procedures of systemd/README.md, by their words, on two machines that boot a real systemd.

a (a tenant, strict) ---- 10.1.0.0/24, fd00:1::/64 ---- b (the service, strict)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing

import pytest
from flows import Flows
from hosts import ROOT, acquainted, answered, peer_of, start, until
from machine import START, Served, two_machines
from tree import CHECKOUT, NOT_SOURCE, OFFLINE, UNITS

from scentd import __version__
from scentd.roles.refusal_log import REJECTED
from scentd.state import key_files
from scentd.wire import keys

pytestmark = [pytest.mark.netns, pytest.mark.alone]

STRICT = {"absent": "reject", "rejected": "drop"}
LENIENT = {"absent": "pass", "rejected": "pass"}
MOVED = "10.1.0.77"
NEWER = f"{__version__}.post1"
PROCEDURES = (UNITS / "README.md").read_text().split("\n## Procedures\n")[1].split("\n## ")[0]


def section(heading: str) -> str:
    """A procedure's text; the introduction for ""."""
    intro, *sections = PROCEDURES.split("\n### ")
    return next(s for s in sections if s.startswith(f"{heading}\n")) if heading else intro


def blocks(heading: str) -> list[list[str]]:
    """The commands that a procedure shows, a list for each block, without comments."""
    found: list[list[str]] = [[]]
    for line in section(heading).splitlines():
        if line.startswith("    ") and not line.lstrip().startswith("|"):
            found[-1].append(line.split("  #")[0].strip())
        elif line and found[-1]:
            found.append([])
    return [block for block in found if block]


def perform(node: Served, commands: list[str]) -> list[str]:
    """What each command says."""
    return [node.machine.run("sh", "-ec", command).stdout for command in commands]


def apply(node: Served) -> None:
    """Its configuration, by the words of the introduction."""
    node.write()
    perform(node, *blocks(""))


def take_key(node: Served) -> str:
    """Its key file as the machine has it now; the public key."""
    node.key_file.write_text((node.machine.root / "etc/scentd/host.key").read_text())
    node.identity = key_files.load(str(node.key_file))
    return str(node.identity.public)


def nobodys_key() -> str:
    return str(keys.identity(key_files.parse_secret(key_files.generate())).public)


def know(node: Served, other: Served, **more) -> None:
    node.peers = [peer_of(other, **more)]
    apply(node)


def let_in(node: Served) -> int:
    return sum(traffic["let_in"] for traffic in node.status()["traffic"])


def reached(sender: Served, receiver: Served, address: str = "") -> bool:
    with receiver.socket(4) as other, closing(sender.socket(4, bind=not address)) as one:
        if address:
            one.bind((address, 0))
        return answered(one, other, seconds=0.5)


def both_ways(a: Served, b: Served) -> None:
    until(lambda: reached(a, b) and reached(b, a), "strict peers take what the other sends")


@pytest.fixture(scope="module")
def machines(tmp_path_factory) -> Iterator[tuple[Served, Served]]:
    with two_machines("pr", tmp_path_factory.mktemp("pr")) as (a, b):
        for node in (a, b):
            node.network["interval"] = "2s"
            node.machine.boot()
        start(a, b)
        yield a, b


@pytest.fixture
def both(machines) -> tuple[Served, Served]:
    """Strict peers of each other."""
    a, b = machines
    know(a, b, **STRICT)
    know(b, a, **STRICT)
    both_ways(a, b)
    return a, b


def test_each_procedure_names_its_test_or_that_there_is_none():
    tests = {path.name: path.read_text() for path in (UNITS.parent / "tests/systemd").glob("test_*.py")}
    for text in PROCEDURES.split("\n### ")[1:]:
        said = " ".join(text.split())
        if "No test runs this" in said:
            continue
        place, _, names = said.rpartition("*Test: tests/systemd/")[2].partition(", ")
        named = [word.strip(".,:*") for word in names.split() if word.startswith("test_")]
        assert named, text.splitlines()[0]
        assert all(f"def {name}(" in tests[place] for name in named), text.splitlines()[0]


def test_each_reason_is_in_the_table():
    assert [reason for reason in REJECTED if f"`{reason}`" not in section("A peer rejects everything")] == []


def test_add_a_tenant(machines):
    """Nothing is lost of what passes before, and in the end the tenant is strictly verified."""
    a, b = machines
    know(b, a, **LENIENT)
    know(a, b, **LENIENT)
    acquainted(b, a)
    acquainted(a, b)
    with Flows(a, b):
        know(b, a, **STRICT)
        know(a, b, **STRICT)
    assert b.status()["traffic"][0]["accepted"] > 0


def test_move_an_address(both):
    a, b = both
    old = a.address(4)
    device = a.host.interfaces[0]
    a.host.ip(f"addr add {MOVED}/24 dev {device}")
    b.sections = {"verify": {"absent": "drop"}}  # whoever is no peer
    apply(b)
    assert not reached(a, b, MOVED), "nobody knows it yet"
    theirs, ours = list(a.addresses), {**a.network}
    b.peers[0]["addresses"] = [*theirs, MOVED]
    apply(b)
    a.network["addresses"] = [*theirs, MOVED]
    apply(a)
    until(lambda: reached(a, b, MOVED) and reached(a, b), "both are known")
    for node in (a, b):
        rest = [*(address for address in theirs if address != old), MOVED]
        if node is a:
            node.network["addresses"] = rest
        else:
            node.peers[0]["addresses"] = rest
        apply(node)
    until(lambda: reached(a, b, MOVED) and not reached(a, b), "only the new one is")
    a.network, b.sections = ours, {}
    apply(a)
    apply(b)
    a.host.ip(f"addr del {MOVED}/24 dev {device}")


def made_key(node: Served) -> str:
    """The file that the procedure has just made; one of an earlier test is out of the way."""
    found = sorted(path for path in (node.machine.root / "etc/scentd").glob("*.key") if path.name != "host.key")
    return f"/etc/scentd/{found[-1].name}"


def test_rotate_a_key(both):
    """In the order of the text nothing is lost of strict peers, and the old key is worth nothing in the end."""
    a, b = both
    with Flows(a, b), Flows(b, a):
        _, said = perform(a, blocks("Rotate a key")[0])
        a.network["next_key_file"] = new_file = made_key(a)
        apply(a)
        b.peers[0]["next_public_key"] = said.strip()
        apply(b)
        new = keys.parse_public(said.strip()).key_id.hex()
        until(lambda: f"made for our key {new}" in a.machine.out("scentd", "status"), "b's packets are for the new key")
        a.network["key_file"] = a.network.pop("next_key_file")
        apply(a)
        until(lambda: f"signed by its key {new}" in b.machine.out("scentd", "status"), "the new key signs")
        del b.peers[0]["next_public_key"]
        b.peers[0]["public_key"] = said.strip()
        apply(b)
        both_ways(a, b)
    a.key_file.write_text((a.machine.root / new_file[1:]).read_text())
    a.network["key_file"] = "/etc/scentd/host.key"
    apply(a)
    assert take_key(a) == said.strip()
    both_ways(a, b)
    (a.machine.root / new_file[1:]).unlink()


def test_rotate_a_credential(both):
    """By restarts, which lose nothing either."""
    a, b = both
    for node in both:
        node.network["interval"] = "10s"
        apply(node)
    old = str(a.identity.public)
    _, said = perform(a, blocks("Rotate a key")[0])
    new = keys.parse_public(said.strip()).key_id.hex()
    drop_in = a.machine.root / "etc/systemd/system/scentd.service.d"
    drop_in.mkdir()
    loads = f"LoadCredential=host:/etc/scentd/host.key\nLoadCredential=next:{made_key(a)}\n"
    (drop_in / "keys.conf").write_text(f"[Service]\n{loads}")

    def restart(first: str, second: str) -> None:
        a.network |= {"key_file": f"credential:{first}", "next_key_file": f"credential:{second}"}
        a.write()
        perform(a, ["systemctl daemon-reload", "systemctl restart scentd"])
        until(a.started, "a starts", START)

    with Flows(a, b), Flows(b, a):
        restart("host", "next")
        b.peers[0]["next_public_key"] = said.strip()
        apply(b)
        until(lambda: f"made for our key {new}" in a.machine.out("scentd", "status"), "b's packets are for the new key")
        restart("next", "host")
        until(lambda: f"signed by its key {new}" in b.machine.out("scentd", "status"), "the new key signs")
    shutil.rmtree(drop_in)
    perform(a, ["systemctl daemon-reload"])
    a.network["key_file"] = "/etc/scentd/host.key"
    del a.network["next_key_file"], b.peers[0]["next_public_key"]
    a.write()
    perform(a, ["systemctl restart scentd"])
    apply(b)
    assert b.peers[0]["public_key"] == old
    both_ways(a, b)


def test_upgrade(both):
    """Host by host, and nothing is lost. The new version is this one under another number."""
    a, b = both
    for node in both:
        node.network["interval"] = "10s"  # a profile may be sent for three: a start on a busy machine takes seconds
        apply(node)
    offline = "".join(f"export {name}={value}; " for name, value in OFFLINE.items())
    with Flows(a, b), Flows(b, a):
        for node in both:
            checkout = node.machine.root / CHECKOUT[1:]
            shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*NOT_SOURCE))
            version = checkout / "scentd/__init__.py"
            version.write_text(version.read_text().replace(__version__, NEWER))
            for command in blocks("Upgrade")[0]:
                said = f"cd {CHECKOUT}; {offline if '/pip ' in command else ''}{command}"
                node.machine.run("sh", "-ec", said, timeout=200)
            until(lambda n=node: n.started() and n.status()["version"] == NEWER, "the new version runs", START)
            until(lambda n=node: n.status()["guard"]["connected"], "it has a guard")
    both_ways(a, b)


def test_a_peer_rejects_everything(both):
    """A wrong key, found by the words of the log; traffic goes on by step 2."""
    a, b = both
    right = str(a.identity.public)
    b.peers[0]["public_key"] = nobodys_key()
    apply(b)
    until(lambda: not reached(a, b), "b rejects")
    until(lambda: "unknown-key" in b.machine.out("scentd", "status"), "status has the reason")
    until(lambda: "compare peer.public_key here with `scentd pubkey` there" in warnings(b), "the log has what to do")
    assert a.machine.out("sh", "-ec", "scentd pubkey < /etc/scentd/host.key") == right
    b.peers[0] |= LENIENT
    apply(b)
    counted = let_in(b)
    until(lambda: reached(a, b), "it comes in unverified")
    until(lambda: let_in(b) > counted, "which is counted")
    b.peers[0] |= {"public_key": right, **STRICT}
    apply(b)
    both_ways(a, b)


def warnings(node: Served) -> str:
    return node.machine.out("journalctl", "-p", "warning", "-u", "scentd", "-o", "cat")


def test_back_up_and_restore(both):
    """All that was there is there again: keys, configuration, revoked keys; and packets pass."""
    a, b = both
    stolen = nobodys_key()
    b.machine.run("scentd", "revoke", stolen)
    backup, restore = blocks("Back up and restore")
    perform(b, backup)
    b.machine.run("systemctl", "stop", "scentd")
    b.machine.run("sh", "-ec", "rm -rf /etc/scentd/* /var/lib/scentd/*")
    perform(b, restore)
    b.wait_started()
    assert stolen in b.machine.out("scentd", "revoke")
    both_ways(a, b)
    b.machine.run("scentd", "revoke", "--undo", stolen)


def test_clone_a_machine(both):
    """The clone has a key of its own, by which its peers know it."""
    a, b = both
    before = str(a.identity.public)
    *_, said = perform(a, blocks("Clone a machine")[0])
    a.machine.run("systemctl", "start", "scentd")
    a.wait_started()
    assert take_key(a) == said.strip() != before
    know(b, a, **STRICT)
    both_ways(a, b)
