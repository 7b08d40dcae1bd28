import subprocess
import sys
from pathlib import Path

import pytest

from scentd.wire import layout

ROOT = Path(__file__).resolve().parent.parent


def test_layout_is_generated_from_the_header():
    run = subprocess.run([sys.executable, ROOT / "scripts" / "gen-layout", "--check"], capture_output=True, text=True)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


def test_a_changed_header_is_noticed(tmp_path):
    for part in ("bpf/scent_wire.h", "scentd/wire/layout.py", "scripts/gen-layout"):
        target = tmp_path / part
        target.parent.mkdir(parents=True)
        target.write_text((ROOT / part).read_text())
    header = tmp_path / "bpf/scent_wire.h"
    header.write_text(header.read_text().replace("SCENT_PERIOD = 3600", "SCENT_PERIOD = 1800"))
    run = subprocess.run([sys.executable, tmp_path / "scripts/gen-layout", "--check"], capture_output=True, text=True)
    assert (run.returncode, "run scripts/gen-layout" in run.stdout) == (1, True)


@pytest.mark.parametrize(
    ("struct", "size"),
    [("SCENT", layout.LEN), ("IPV4_OPTION", layout.IPV4_OPTION_LEN), ("IPV6_HEADER", layout.IPV6_HEADER_LEN),
     ("TAG_INPUT_IPV4", 40), ("TAG_INPUT_IPV6", 64), ("TAG_INPUT_SENDER", 32), ("BODY", layout.BODY_LEN)],
)  # fmt: skip
def test_sizes_agree(struct, size):
    assert getattr(layout, struct).size == getattr(layout, f"{struct}_SIZE") == size


def test_lengths_add_up():
    assert layout.TAGGED_LEN + layout.TAG_LEN == layout.LEN
    assert layout.BODY_LEN + layout.SIGNATURE_LEN == layout.PROFILE_LEN == layout.FRAGMENTS * layout.FRAGMENT_LEN
    assert layout.IPV4_OPTION_LEN % 4 == 0
    assert layout.IPV6_HEADER_LEN % 8 == 0
    assert layout.SCENT_TAG_AT == layout.TAGGED_LEN


def test_a_c_compiler_sees_the_same_sizes(tmp_path):
    """The header is what BPF is built from: no padding that Python does not know of."""
    structs = {"scent": 34, "scent_ipv4_option": 36, "scent_ipv6_header": 40, "scent_tag_input_ipv4": 40,
               "scent_tag_input_ipv6": 64, "scent_tag_input_sender": 32, "scent_body": 66}  # fmt: skip
    checks = "".join(f'_Static_assert(sizeof(struct {n}) == {s}, "{n}");\n' for n, s in structs.items())
    source = tmp_path / "sizes.c"
    source.write_text(f'#include "{ROOT}/bpf/scent_wire.h"\n{checks}')
    compiler = next(
        (c for c in ("cc", "gcc", "clang") if subprocess.run(["which", c], capture_output=True).stdout), None
    )
    if compiler is None:
        pytest.skip("no C compiler")
    run = subprocess.run([compiler, "-fsyntax-only", source], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
