"""The operator's own back end: real programs."""

from __future__ import annotations

import os
import re
import threading
from pwd import getpwuid

import pytest

from scentd.act.actuator import Tally
from scentd.act.resources.backend import BackendSetting, Refused
from scentd.act.resources.command import CommandResource, ProgramBackend
from scentd.errors import HostError

KEEPS = """
import json, sys
q = json.load(sys.stdin)
try: amounts = json.load(open(FILE))
except OSError: amounts = {}
if q["do"] == "change":
    amounts[q["peer"]] = q["amount"]
    json.dump(amounts, open(FILE, "w"))
print(json.dumps({"amounts": amounts}))
"""


@pytest.fixture
def backend(tmp_path):
    def make(text, timeout=5.0):
        program = tmp_path / "program"
        program.write_text(f"FILE = {str(tmp_path / 'state')!r}\n{text}")
        argv = ("/usr/bin/python3", str(program))
        me = getpwuid(os.geteuid()).pw_name
        resource = CommandResource(name="r", maximum=9.0, argv=argv, user=me, timeout=timeout)
        return ProgramBackend(resource, BackendSetting({"b": ()}, tmp_path, Tally(), threading.Event()))

    return make


def test_amounts_change_and_are_observed(backend):
    one = backend(KEEPS)
    assert one.observe() == {}
    one.change("b", 3.0)
    assert one.observe() == {"b": 3.0}


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("print('{}')", HostError, "reported success, but b has 0 and not 1"),
        ("import sys; sys.stderr.write('later\\nx'); sys.exit(75)", HostError, "status 75: later$"),
        ("import sys; sys.stderr.write('no \\x1b[31mgrant\\n'); sys.exit(3)", Refused, r"status 3: no \?\[31mgrant$"),
        ("print('nothing')", HostError, "its answer is not"),
        ("import time; time.sleep(60)", HostError, "killed after 1 s"),
        ("import os; os.write(2, b'x' * 4096); os._exit(4)", Refused, "status 4: x{200}$"),
    ],
)
def test_failures(backend, text, error, said):
    with pytest.raises(HostError) as caught:
        backend(text, timeout=1.0).change("b", 1.0)
    assert type(caught.value) is error
    assert re.search(said, str(caught.value))


def test_the_daemon_stops(backend):
    one = backend("import time; time.sleep(60)")
    one.setting.closing.set()
    with pytest.raises(HostError, match="scentd stops"):
        one.observe()
