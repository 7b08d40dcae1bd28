"""The C headers and what is generated from them: the wire's layout and that of the BPF maps."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scentd.wire import layout, maps

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"bpf/scent_wire.h": "scentd/wire/layout.py", "bpf/scent_maps.h": "scentd/wire/maps.py"}
WIRE_SIZES = {"scent": 34, "scent_ipv4_option": 36, "scent_ipv6_header": 40, "scent_tag_input_ipv4": 40,
              "scent_tag_input_ipv6": 64, "scent_tag_input_sender": 32, "scent_body": 66}  # fmt: skip
MAP_SIZES = {"scent_prefix": 24, "scent_prefix_value": 8, "scent_lengths": 16, "scent_stamp_settings": 80,
             "scent_piece": 24, "scent_outgoing": 296, "scent_verify_settings": 168, "scent_identity": 12,
             "scent_incoming": 112, "scent_receiving": 184, "scent_node": 24, "scent_event": 168}  # fmt: skip
MAPS = [name.removeprefix("scent_").upper() for name in MAP_SIZES]


def test_what_is_generated_is_what_the_headers_say():
    run = subprocess.run([sys.executable, ROOT / "scripts" / "gen-layout", "--check"], capture_output=True, text=True)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")


@pytest.fixture
def generate(tmp_path):
    """Runs the generator on a copy of its files in which one text of a header is another."""
    for header, python in GENERATED.items():
        for part in (header, python, "scripts/gen-layout"):
            target = tmp_path / part
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text((ROOT / part).read_text())

    def run(header: str, old: str, new: str, *argv: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / header
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
        return subprocess.run([sys.executable, tmp_path / "scripts/gen-layout", *argv], capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("header", "old", "new"),
    [
        ("bpf/scent_wire.h", "SCENT_PERIOD = 3600", "SCENT_PERIOD = 1800"),
        ("bpf/scent_maps.h", "SCENT_NODES = 4096", "SCENT_NODES = 64"),
        ("bpf/scent_maps.h", "__u32 detail;", "__u32 details;"),
    ],
)
def test_a_changed_header_is_noticed(generate, header, old, new):
    run = generate(header, old, new, "--check")
    assert (run.returncode, run.stdout) == (
        1,
        f"{GENERATED[header]} is not what {header} says: run scripts/gen-layout\n",
    )


@pytest.mark.parametrize(
    ("old", "new", "member"),
    [
        ("__u32 number;", "__u8 more;\n\t__u32 number;", "number"),
        ("__u64 tag_key[2];", "__u32 more;\n\t__u64 tag_key[2];", "tag_key"),
        # As strict as its own members: the pieces have words.
        ("__u32 flags;\t\t\t/* scent_pair_flags */\n\tstruct scent_piece", "struct scent_piece", "pieces"),
        ("__u16 padding[3];", "__u16 padding[2];", "its end"),
    ],
)
def test_padding_that_only_c_knows_of_is_refused(generate, tmp_path, old, new, member):
    run = generate("bpf/scent_maps.h", old, new)
    assert run.returncode == 1
    assert f": {member} is not aligned: write the padding out" in run.stderr
    assert (tmp_path / "scentd/wire/maps.py").read_text() == (ROOT / "scentd/wire/maps.py").read_text()


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


@pytest.mark.parametrize(("header", "sizes"), [("scent_wire.h", WIRE_SIZES), ("scent_maps.h", MAP_SIZES)])
def test_a_c_compiler_sees_the_same_sizes(tmp_path, header, sizes):
    """The headers are what BPF is built from: no padding that Python does not know of."""
    checks = "".join(f'_Static_assert(sizeof(struct {n}) == {s}, "{n}");\n' for n, s in sizes.items())
    compiled(tmp_path, header, checks)


def test_a_c_compiler_sees_the_maps_members_where_python_does(tmp_path):
    checks = [
        f'_Static_assert(__builtin_offsetof(struct scent_{n.lower()}, {field.lower()}) == {at}, "{n}.{field}");\n'
        for n in MAPS
        for field, at in offsets(n).items()
    ]
    assert len(checks) > 60
    compiled(tmp_path, "scent_maps.h", "".join(checks))


@pytest.mark.parametrize("struct", MAPS)
def test_sizes_of_the_maps_agree(struct):
    size = getattr(maps, struct).size
    assert size == getattr(maps, f"{struct}_SIZE") == MAP_SIZES[f"scent_{struct.lower()}"]


def offsets(struct: str) -> dict[str, int]:
    """Member -> offset, of what maps.py has for a struct; a name may begin as that of another struct does."""
    text = (ROOT / "scentd/wire/maps.py").read_text()
    block = text[text.index(f"\n{struct} = Struct(") :].partition(f"\n{struct}_SIZE")[0]
    return {field: int(at) for field, at in re.findall(rf"(?m)^{struct}_(\w+)_AT = (\d+)$", block)}


def compiled(directory: Path, header: str, checks: str) -> None:
    source = directory / "checks.c"
    source.write_text(f'#include "{ROOT}/bpf/{header}"\n{checks}')
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        pytest.skip("no C compiler")
    run = subprocess.run([compiler, "-fsyntax-only", source], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
