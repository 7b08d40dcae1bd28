"""The C headers and what is generated from them: the wire's layout and that of the BPF maps."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest

from scentd.wire import layout, maps

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"bpf/scent_wire.h": "scentd/wire/layout.py", "bpf/scent_maps.h": "scentd/wire/maps.py"}
WIRE_SIZES = {"scent": 34, "scent_ipv4_option": 36, "scent_ipv6_header": 40, "scent_tag_input_ipv4": 40,
              "scent_tag_input_ipv6": 64, "scent_tag_input_sender": 32, "scent_body": 66}  # fmt: skip
MAP_SIZES = {"scent_prefix": 24, "scent_prefix_value": 8, "scent_lengths": 16, "scent_stamp_settings": 104,
             "scent_piece": 24, "scent_outgoing": 296, "scent_verify_settings": 200, "scent_identity": 12,
             "scent_incoming": 128, "scent_receiving": 256, "scent_node": 24, "scent_event": 176}  # fmt: skip
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
        ("__u8 padding[5];\n};\n\n/* By pair. Replaced", "__u8 padding[4];\n};\n\n/* By pair. Replaced", "its end"),
    ],
)
def test_padding_that_only_c_knows_of_is_refused(generate, tmp_path, old, new, member):
    run = generate("bpf/scent_maps.h", old, new)
    assert run.returncode == 1
    assert f": {member} is not aligned: write the padding out" in run.stderr
    assert (tmp_path / "scentd/wire/maps.py").read_text() == (ROOT / "scentd/wire/maps.py").read_text()


LAST_VERDICT = "SCENT_VERDICT_REPLAYED_EPOCH = 10,"


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [
        ("\tSCENT_VERDICTS,", "\tSCENT_VERDICTS,\n\tSCENT_VERDICT_NEW = 11,", "SCENT_VERDICTS as the last"),
        (LAST_VERDICT, f"{LAST_VERDICT} SCENT_VERDICT_NEW = 10,", "SCENT_VERDICTS as the last"),
        (LAST_VERDICT, f"{LAST_VERDICT} SCENT_VERDICT_NEW = 12,", "SCENT_VERDICTS as the last"),
        ("\tSCENT_VERDICTS,", "\tSCENT_VERDICTS = 12,", "SCENT_VERDICTS as the last"),
        ("\tSCENT_UNSTAMPED_REASONS,", "\tSCENT_UNSTAMPED_REASONS, SCENT_UNSTAMPED_NEW,", "SCENT_UNSTAMPED_REASONS as"),
        ("\tSCENT_TREATMENTS,", "\tSCENT_TREATMENTS, SCENT_TREATMENT_NEW = 3,", "SCENT_TREATMENTS as"),
        ("SCENT_BLOOM_HASHES = 5", "SCENT_BLOOM_LEN = 5", "SCENT_BLOOM_LEN is there twice"),
        ("SCENT_LEVELS = 22", "SCENT_LEVELS = SCENT_METRICS", "not a constant that gen-layout knows: SCENT_METRICS"),
        ("[SCENT_LEVELS]", "[sizeof(__u32)]", "not a constant that gen-layout knows: UnaryOp"),
    ],
)
def test_counts_that_do_not_fit_and_unknown_constants_are_refused(generate, tmp_path, old, new, refused):
    """A twelfth verdict behind the count would have the number, and the counter, of something else."""
    run = generate("bpf/scent_wire.h", old, new)
    assert (run.returncode, refused in run.stderr, "Traceback" in run.stderr) == (1, True, False)
    for python in GENERATED.values():
        assert (tmp_path / python).read_text() == (ROOT / python).read_text()


def test_what_is_derived_follows_a_verdict_and_a_reason_more(generate, tmp_path):
    generate("bpf/scent_wire.h", LAST_VERDICT, f"{LAST_VERDICT} SCENT_VERDICT_NEW = 11,")
    run = generate("bpf/scent_wire.h", "TUNNELLED = 10,", "TUNNELLED = 10, SCENT_UNSTAMPED_NEW_REASON = 11,")
    assert (run.returncode, run.stderr) == (0, "")
    new_layout, new_maps = (run_path(str(tmp_path / python)) for python in GENERATED.values())
    assert new_layout["VERDICTS"] == layout.VERDICTS | {11: "new"}
    assert new_layout["UNSTAMPED"] == layout.UNSTAMPED | {11: "new-reason"}
    assert {name for name, value in new_maps.items() if isinstance(value, int) and value != getattr(maps, name)} == {
        "STAMP_COUNT_FAILED", "STAMP_COUNTERS", "VERIFY_COUNT_DECLINED", "VERIFY_COUNT_FAILED",
        "VERIFY_COUNT_EVENTS_LOST", "VERIFY_COUNT_NODES_LOST", "VERIFY_COUNT_QUARANTINED",
        "VERIFY_COUNT_DUPLICATE_ISSUER", "VERIFY_COUNTERS",
    }  # fmt: skip
    assert new_maps["VERIFY_COUNT_DECLINED"] == maps.VERIFY_COUNT_DECLINED + len(layout.TREATMENTS)
    assert new_maps["STAMP_COUNT_FAILED"] == maps.STAMP_COUNT_FAILED + 1
    checks = f'_Static_assert(SCENT_VERIFY_COUNTERS == {new_maps["VERIFY_COUNTERS"]}, "counters");\n'
    compiled(tmp_path, "scent_maps.h", checks, tmp_path)


@pytest.mark.parametrize(
    ("header", "old", "new", "said"),
    [
        ("scent_wire.h", "SCENT_FRAGMENT_LEN = 13", "SCENT_FRAGMENT_LEN = 12", "fragments make up the profile"),
        ("scent_wire.h", "__u8 lag;", "", "struct scent_body"),
        ("scent_wire.h", "SCENT_LEN = 34", "SCENT_LEN = 38", "an IPv6 extension header is a number of 8-byte words"),
        ("scent_maps.h", "SCENT_TREATMENTS_ABSENT = 2", "SCENT_TREATMENTS_ABSENT = 1", "bits of a treatment"),
    ],
)
def test_a_c_compiler_refuses_what_does_not_fit(tmp_path, header, old, new, said):
    for name in ("scent_wire.h", "scent_maps.h"):
        text = (ROOT / "bpf" / name).read_text()
        assert name != header or old in text
        (tmp_path / "bpf").mkdir(exist_ok=True)
        (tmp_path / "bpf" / name).write_text(text.replace(old, new, 1) if name == header else text)
    run = compile_c(tmp_path, header, "", tmp_path)
    assert run.returncode != 0
    assert said in run.stderr


@pytest.mark.parametrize(("header", "generated"), [("scent_wire.h", layout), ("scent_maps.h", maps)])
def test_a_c_compiler_sees_the_same_constants(tmp_path, header, generated):
    """What the headers derive from other constants, too."""
    text = (ROOT / "bpf" / header).read_text()
    names = {name.removeprefix("SCENT_"): name for name in re.findall(r"(?m)^\t(SCENT_\w+)(?= =|,)", text)}
    numbers = {c: getattr(generated, python) for python, c in names.items() if hasattr(generated, python)}
    numbers = {c: value for c, value in numbers.items() if isinstance(value, int)}
    left = set(names.values()) - set(numbers)
    counts = {"SCENT_VERDICTS": "VERDICTS", "SCENT_UNSTAMPED_REASONS": "UNSTAMPED", "SCENT_TREATMENTS": "TREATMENTS"}
    if generated is layout:
        assert left == set(counts)
        numbers |= {c: len(getattr(layout, python)) for c, python in counts.items()}
    else:
        assert left == set()
    compiled(tmp_path, header, "".join(f'_Static_assert({c} == {n}, "{c}");\n' for c, n in numbers.items()))


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


def compiled(directory: Path, header: str, checks: str, root: Path = ROOT) -> None:
    run = compile_c(directory, header, checks, root)
    assert run.returncode == 0, run.stderr


def compile_c(directory: Path, header: str, checks: str, root: Path) -> subprocess.CompletedProcess[str]:
    source = directory / "checks.c"
    source.write_text(f'#include "{root}/bpf/{header}"\n{checks}')
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        pytest.skip("no C compiler")
    return subprocess.run([compiler, "-fsyntax-only", source], capture_output=True, text=True)
