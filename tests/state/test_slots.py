"""The highest epochs go by configured names, so that a new key opens no replay window."""

import pytest

from scentd.kinds import config_from
from scentd.state import slots
from scentd.state.epochs import prepare, slot_id
from scentd.wire import keys

OWN, OTHER, NEXT = (keys.identity(bytes((n,)) * 32) for n in (1, 2, 3))


def config(public, **more):
    return config_from(
        {
            "network": [{"name": "net", "key_file": "/k"}],
            "peer": [{"name": "them", "public_key": str(public.public), "addresses": ["192.0.2.1"], **more}],
        }
    )


def opened(path, settings, own):
    needed = [slots.issued_slot("net"), *slots.seen_slots(settings).values()]
    epochs = prepare(path / "epochs", needed)
    slots.carry_over(epochs, settings, {"net": own})
    return epochs


def test_new_keys_have_the_old_epochs(tmp_path):
    first = opened(tmp_path, config(OTHER), (OWN,))
    first.set_epoch(slots.issued_slot("net"), 700)
    first.raise_row(first.slot(slots.seen_slot("net", "them")), 800, 801)
    number = first.slot(slots.seen_slot("net", "them"))
    first.close()
    for settings, own in (
        (config(OTHER, next_public_key=str(NEXT.public)), (OWN,)),
        (config(NEXT), (keys.identity(b"\4" * 32),)),
    ):
        epochs = opened(tmp_path, settings, own)
        assert epochs.slot(slots.seen_slot("net", "them")) == number
        assert epochs.epoch(slots.issued_slot("net")) == 700
        assert epochs.row(number)[:2] == (800, 801)
        epochs.close()


@pytest.fixture
def former(tmp_path):
    """A file by keys, as earlier versions wrote it."""
    issued = slot_id("issued", OWN.public.raw)
    seen = [slot_id("seen", OWN.public.raw, peer.public.raw) for peer in (OTHER, NEXT)]
    epochs = prepare(tmp_path / "epochs", [issued, *seen])
    epochs.set_epoch(issued, 500)
    for slot, epoch in zip(seen, (600, 610), strict=True):
        epochs.raise_row(epochs.slot(slot), epoch, epoch + 1)
    epochs.close()
    return tmp_path


def test_state_of_before_is_carried_over(former):
    epochs = opened(former, config(OTHER), (OWN,))
    assert epochs.epoch(slots.issued_slot("net")) == 500
    assert epochs.row(epochs.slot(slots.seen_slot("net", "them"))) == (600, 601, 0, 0, 0)


def test_the_highest_of_several_keys_is_carried_over_once(former):
    settings = config(OTHER, next_public_key=str(NEXT.public))
    epochs = opened(former, settings, (OWN,))
    slot = slots.seen_slot("net", "them")
    assert epochs.row(epochs.slot(slot)) == (610, 611, 0, 0, 0)
    epochs.set_epoch(slot, 605)
    epochs.close()
    assert opened(former, settings, (OWN,)).epoch(slot) == 605, "only where there is nothing yet"
