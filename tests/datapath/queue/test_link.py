"""Messages between daemon and workers: whole or not at all, however the bytes come."""

import msgspec
import pytest
import wire_setup
from hypothesis import given
from hypothesis import strategies as st

from scentd.datapath.queue import link
from scentd.model import Fragment

TO_WORKER = [
    link.WorkerSetup(1, 2, 64, 1, 2),
    link.PathTables(wire_setup.STAMP_TABLE, wire_setup.VERIFY_TABLE, "/state/epochs"),
    link.NewEpochs(wire_setup.outgoing()),
]
FROM_WORKER = [
    link.Ready(),
    link.StartFailure("no queue"),
    link.Fragments((Fragment(1, 2, 3, b"x" * 13, 0.5, 1.0, b"\n\0\0\1", b"themours"),)),
    link.WorkerReport({"stamped": 7}, ((0, "stale:drop", 2),), {0: 1_700_000_000}, ((0, 5, 1023),), {0: [b"\n\0\0\1"]}),
]


@pytest.mark.parametrize(("kind", "messages"), [(link.ToWorker, TO_WORKER), (link.FromWorker, FROM_WORKER)])
@given(data=st.data())
def test_any_cut_of_the_stream(kind, messages, data):
    stream = b"".join(map(link.frame, messages))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader, got = link.MessageReader(kind), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[start:end])
    assert got == messages


def test_the_other_ends_messages_are_refused():
    with pytest.raises(msgspec.ValidationError):
        link.MessageReader(link.ToWorker).feed(link.frame(link.Ready()))


def test_a_size_that_cannot_be():
    with pytest.raises(ValueError, match="a message of"):
        link.MessageReader(link.ToWorker).feed(b"\xff\xff\xff\xff")


@given(st.binary(max_size=200))
def test_garbage_is_an_error_or_waits_for_more(data):
    try:
        assert all(
            isinstance(m, link.WorkerSetup | link.PathTables | link.NewEpochs)
            for m in link.MessageReader(link.ToWorker).feed(data)
        )
    except (msgspec.MsgspecError, ValueError):
        return


def test_the_socket_pair_ends_with_either_side():
    ours, theirs = link.pair()
    with theirs:
        ours.sendall(link.frame(TO_WORKER[0]))
        ours.close()
        assert link.MessageReader(link.ToWorker).feed(theirs.recv(1 << 16)) == TO_WORKER[:1]
        assert theirs.recv(10) == b""
