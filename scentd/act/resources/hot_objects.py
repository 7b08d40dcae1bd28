"""Which objects of a site a network asks for most, by the end of the origin's access log.

The log is nginx's, Apache's or varnishncsa's in the combined format. Its lines quote what anybody has sent, so a line
that is long or not exactly as expected is skipped; what passes is a path that can be asked for as it stands.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote_to_bytes

from scentd.prefix import PrefixMap

LINE_MAX = 4096  # bytes
PATH_MAX = 2048
# host ident user [time] "GET target HTTP/1.1" status size; with a user, an answer is for that user alone
LINE = re.compile(
    rb'([0-9A-Fa-f:.]{2,45}) \S+ - \[[^\]"]{1,40}\] "GET (\S+) HTTP/[0-9.]{1,3}" (?:200|304) (?:\d+|-)(?:\s|$)'
)
PRINTABLE = re.compile(rb"/[!$-;=?-\[\]_a-z~]*")  # the characters of a path and query, no `"#<>\^`{|}`; RFC 3986


def hottest(lines: Iterable[bytes], clients: PrefixMap[bool], site: str, most: int) -> list[str]:
    """The paths that addresses in `clients` have asked for most, at most `most`; of equals the first by name."""
    counts: Counter[bytes] = Counter()
    for line in lines:
        match = LINE.match(line) if len(line) <= LINE_MAX else None
        if match is not None and clients.get(packed(match[1])):
            target = match[2].removeprefix(b"http://" + site.encode())  # varnishncsa writes whole URLs
            if is_plain(target):
                counts[target] += 1
    return [path.decode("ascii") for path in sorted(counts, key=lambda p: (-counts[p], p))[:most]]


def is_plain(target: bytes) -> bool:
    """Whether it is a path on the site itself, without a way up."""
    if len(target) > PATH_MAX or target.startswith(b"//") or PRINTABLE.fullmatch(target) is None:
        return False
    path = unquote_to_bytes(target.partition(b"?")[0])
    return b".." not in re.split(rb"[/\\;]", path) and all(byte >= 0x20 and byte != 0x7F for byte in path)


def packed(text: bytes) -> bytes:
    try:
        address = ip_address(text.decode("ascii"))
    except ValueError:
        return b""
    mapped = address.ipv4_mapped if address.version == 6 else None
    return (mapped or address).packed


def last_lines(path: Path, size: int) -> Iterator[bytes]:
    """The lines in the last `size` bytes of a log; its predecessor (PATH.1) gives what is short. Raises OSError."""
    end = tail(path, size)
    rest = size - len(end)
    if rest > 0:
        with suppress(OSError):  # it was never rotated, or is compressed
            yield from tail(path.with_name(path.name + ".1"), rest).split(b"\n")
    yield from end.split(b"\n")


def tail(path: Path, size: int) -> bytes:
    """The last `size` bytes of a regular file, without the line that the beginning cuts. Raises OSError."""
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(opened, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path}: is no regular file")
        start = max(0, status.st_size - size)
        file.seek(start)
        data = file.read(size)
    return data.partition(b"\n")[2] if start else data
