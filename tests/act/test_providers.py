"""A provider on a real file system: gives what is wanted, retries, tells what was refused, notices others."""

import threading
import time

import pytest
from act.filing import FilesBackend, FilesResource, setting

from scentd.act import providers
from scentd.act.providers import Provider
from scentd.model import Applied, Observed


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(providers, "LOOK", 0.1)
    monkeypatch.setattr(providers, "BACKOFF_MIN", 0.05)


@pytest.fixture
def start(tmp_path, quick):
    """Makes providers; they are closed in the end."""
    made = []

    def make(given=None, **more):
        resource = FilesResource(name="files", maximum=9.0, directory=str(tmp_path), **more)
        provider = Provider(FilesBackend(resource, setting(tmp_path, "a", "b")), lambda r: provider.reports.append(r))
        provider.reports = []
        made.append(provider)
        provider.start(given or {})
        return provider

    yield make
    for each in made:
        each.close(give_back=False)
    assert not [t for t in threading.enumerate() if t.name == "provide-files"]


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def files(tmp_path, peer="a"):
    return len(list((tmp_path / peer).iterdir())) if (tmp_path / peer).exists() else 0


def applied(provider):
    return [r for r in provider.reports if isinstance(r, Applied)]


def test_gives_takes_and_reports(start, tmp_path):
    provider = start()
    wait_for(lambda: provider.reports)
    assert provider.reports[0] == Observed("files", {}, ())
    provider.want({"a": 3.0, "b": 1.0})
    wait_for(lambda: (files(tmp_path), files(tmp_path, "b")) == (3, 1) and len(applied(provider)) == 2)
    provider.want({"a": 1.0})
    wait_for(lambda: files(tmp_path) == 1 and len(applied(provider)) == 3)
    last = applied(provider)[-1]
    assert (last.peer, last.amount, last.failure) == ("a", 1.0, "")


def test_the_newest_wish_counts(start, tmp_path):
    (tmp_path / "hang").touch()
    provider = start()
    for amount in (1.0, 5.0, 2.0):
        provider.want({"a": amount})
    (tmp_path / "hang").unlink()
    wait_for(lambda: files(tmp_path) == 2)


def test_a_failure_is_tried_again_and_one_peer_does_not_hold_up_another(start, tmp_path):
    (tmp_path / "fail").touch()
    provider = start()
    provider.want({"a": 2.0})
    wait_for(lambda: provider.why_not("a"))
    assert provider.why_not("a") == "fail: remove it"
    assert applied(provider)[0].failure == "fail: remove it"
    (tmp_path / "fail").unlink()
    wait_for(lambda: files(tmp_path) == 2 and not provider.why_not("a"))


def test_what_is_refused_is_not_tried_again_before_something_else_is_wanted(start, tmp_path):
    (tmp_path / "refuse").touch()
    provider = start()
    provider.want({"a": 2.0})
    wait_for(lambda: provider.why_not("a"))
    (tmp_path / "refuse").unlink()
    before = len(provider.reports)
    wait_for(lambda: len(provider.reports) > before + 5)
    assert files(tmp_path) == 0
    provider.want({"a": 3.0})
    wait_for(lambda: files(tmp_path) == 3)


def test_success_without_effect_is_a_failure(start, tmp_path):
    (tmp_path / "lie").touch()
    provider = start()
    provider.want({"a": 2.0})
    wait_for(lambda: provider.why_not("a"))
    assert provider.why_not("a") == "done by its own account, but 0 files is there, not 2 files"


def test_it_goes_on_after_it_could_not_look(start, tmp_path):
    (tmp_path / "broken").touch()
    provider = start()
    provider.want({"a": 2.0})
    wait_for(lambda: provider.why_not("a") == "broken: remove it")
    (tmp_path / "broken").unlink()
    wait_for(lambda: files(tmp_path) == 2)


@pytest.mark.parametrize(("drift", "after"), [("correct", 2), ("report", 1)])
def test_a_change_by_hand_is_told_and_corrected_or_left(start, tmp_path, drift, after):
    provider = start(drift=drift)
    provider.want({"a": 2.0})
    wait_for(lambda: files(tmp_path) == 2 and len(applied(provider)) == 1)
    (tmp_path / "a" / "1").unlink()
    wait_for(lambda: any(isinstance(r, Observed) and r.drifted == ("a",) for r in provider.reports))
    before = len(provider.reports)
    wait_for(lambda: len(provider.reports) > before + 3)
    assert files(tmp_path) == after


def test_what_changed_while_it_was_away_is_drift(start, tmp_path):
    provider = start({"a": 2.0})
    wait_for(lambda: provider.reports)
    assert provider.reports[0].drifted == ("a",)
    wait_for(lambda: files(tmp_path) == 2)


@pytest.mark.parametrize(("give_back", "left"), [(True, 0), (False, 2)])
def test_the_end_keeps_or_gives_back(start, tmp_path, give_back, left):
    provider = start()
    provider.want({"a": 2.0})
    wait_for(lambda: files(tmp_path) == 2)
    provider.close(give_back)
    assert files(tmp_path) == left


def test_the_end_does_not_wait_for_a_change_that_hangs(start, tmp_path):
    (tmp_path / "hang").touch()
    provider = start()
    provider.want({"a": 2.0})
    time.sleep(0.1)
    began = time.monotonic()
    provider.close(give_back=False)
    assert time.monotonic() - began < 5
    assert files(tmp_path) == 0


def test_what_a_server_answers_cannot_write_on_a_terminal(start, tmp_path, caplog):
    (tmp_path / "fail").write_text("\x1b[2Jno\nforged: line" + "x" * 1000)
    provider = start()
    provider.want({"a": 2.0})
    wait_for(lambda: provider.why_not("a"))
    assert provider.why_not("a").startswith(" [2Jno forged: line")
    assert len(provider.why_not("a")) < 500
    wait_for(lambda: "forged" in caplog.text)
    assert "\x1b" not in caplog.text
    assert "\nforged" not in caplog.text
