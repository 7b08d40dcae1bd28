"""What ClamAV finds: the lines of its logs, and a real clamscan with a signature of its own for the EICAR test file."""

import asyncio
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scentd.collect import clamav
from scentd.collect.clamav import ClamavReader, ClamavSource, Findings
from scentd.collect.source import Setting

# In two halves, so that no scanner takes this file for it (eicar.org).
EICAR = rb"X5O!P%@AP[4\PZX54(P^)7CC)7}$" + rb"EICAR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"


def take(*lines):
    log = Findings(ClamavSource(hold=60.0))
    events = [log.event(line if isinstance(line, bytes) else line.encode(), 1000.0, 0.0) for line in lines]
    return [event for event in events if event is not None], log.counters


@pytest.mark.parametrize(
    ("line", "severity"),
    [
        ("/srv/upload/a.zip: Win.Test.EICAR_HDB-1 FOUND", clamav.FOUND),  # clamscan --log, clamd without LogTime
        ("Sat Nov 28 10:06:14 2026 -> /srv/a b: c: Eicar-Test.UNOFFICIAL FOUND", clamav.FOUND),
        (
            "Sat Nov 28 10:06:14 2026 -> instream(127.0.0.1@34234): "
            "Win.Test.EICAR_HDB-1(44d88612fea8a8f36de82e1278abb02f:68) FOUND",
            clamav.FOUND,
        ),
        ("/home/x/tool.exe: PUA.Win.Tool.Packed-177 FOUND", clamav.SUSPECTED),
        ("/home/x/mail: Heuristics.Phishing.Email.SpoofedDomain FOUND", clamav.SUSPECTED),
        (b"/srv/\xff\xfe: Eicar FOUND", clamav.FOUND),
    ],
)
def test_a_finding(line, severity):
    (event,), counters = take(line)
    assert (event.kind, event.severity, event.node, event.until) == ("malware", severity, "", 1060.0)
    assert counters == {"lines": 1, "found": severity == clamav.FOUND, "suspected": severity == clamav.SUSPECTED}


@pytest.mark.parametrize(
    "line",
    [
        "/srv/a: OK",
        "Known viruses: 8700000",
        "Infected files: 1",
        "FOUND",
        ": FOUND",
        "/srv/Eicar FOUND",
        "/srv/a: Eicar FOUND: OK",
        "Sat Nov 28 10:06:14 2026 -> SelfCheck: Database status OK.",
        "Sat Nov 28 10:06:14 2026 -> /srv/a: Can't open file or directory ERROR",
    ],
)
def test_what_is_no_finding(line):
    assert take(line)[0] == []


@given(st.binary(max_size=300))
def test_no_line_raises(data):
    events, _ = take(data, data + b": x FOUND")
    assert all(event.kind == "malware" and "\n" not in event.detail for event in events)


def test_the_eicar_file_and_a_real_clamscan(tmp_path):
    signature, log = tmp_path / "one.ndb", tmp_path / "log"
    signature.write_text(f"Eicar-Test:0:0:{EICAR.hex()}\n")
    (tmp_path / "bad").write_bytes(EICAR)
    (tmp_path / "good").write_text("nothing\n")
    alarms = []

    async def story():
        made = ClamavReader(ClamavSource(file=str(log)), Setting((), alarms.append))
        await made.start()
        scan = ["clamscan", f"--database={signature}", f"--log={log}", str(tmp_path / "good"), str(tmp_path / "bad")]
        done = await asyncio.to_thread(subprocess.run, scan, capture_output=True, check=False)
        assert done.returncode == 1, done.stderr  # clamscan(1): something was found
        async with asyncio.timeout(10):
            while not alarms:
                await asyncio.sleep(0.005)
        await made.close()
        return made.counts()

    counters = asyncio.run(story())
    assert [(a.kind, a.severity) for a in alarms] == [("malware", clamav.FOUND)]
    assert "Eicar-Test.UNOFFICIAL" in alarms[0].detail
    assert (counters["clamav_found"], counters["clamav_suspected"]) == (1, 0)
