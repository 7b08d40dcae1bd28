"""Replicas by the scale subresource, with the real client library; api_server.py stands in for the API server."""

import math
import threading
import time

import pytest
from api_server import Cluster, running

from scentd.act.actuator import Tally
from scentd.act.resources.backend import BackendSetting, Refused
from scentd.act.resources.kubernetes import KubernetesBackend, KubernetesResource
from scentd.config.schema import convert
from scentd.errors import HostError


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    made.replicas, made.ready = {"web-a": 1, "web-b": 3}, {"web-a": 1, "web-b": 3}
    return made


@pytest.fixture
def backend(cluster, tmp_path):
    with running(cluster) as url:
        resource = KubernetesResource(
            name="web",
            maximum=9.0,
            server=url,
            object="web-{peer}",
            token_file=str(cluster.token_file),
            ca_file=str(cluster.ca),
            timeout=5.0,
            request_timeout=8.0,
        )
        setting = BackendSetting(peers={"a": (), "b": ()}, directory=tmp_path, tally=Tally())
        yield KubernetesBackend(resource, setting)


def test_up_and_down(cluster, backend):
    assert backend.observe() == {"a": 1.0, "b": 3.0}
    for amount in (4.0, 2.0, 0.0):
        backend.change("a", amount)
        assert backend.observe() == {"a": amount, "b": 3.0}
    assert [body["spec"] for body in cluster.written] == [{"replicas": n} for n in (4, 2, 0)]


def test_an_amount_that_is_there_is_not_written(cluster, backend):
    backend.change("b", 3.0)
    assert cluster.written == []


def test_what_is_asked_for_is_not_there_before_it_is_ready(cluster, backend):
    cluster.delay = math.inf
    changing = threading.Thread(target=backend.change, args=("a", 2.0))
    changing.start()
    end = time.monotonic() + 5
    while not cluster.written and time.monotonic() < end:
        time.sleep(0.01)
    assert backend.observe()["a"] == 1.0
    assert changing.is_alive()
    cluster.be_ready("web-a", 2)
    changing.join(5)
    assert not changing.is_alive()


def test_who_is_never_ready_is_a_failure_that_says_where_to_look(cluster, backend):
    cluster.delay = math.inf
    with pytest.raises(HostError, match="1 of 2 are ready after 5 s; kubectl -n default describe deployments web-a"):
        backend.change("a", 2.0)


def test_somebody_elses_change_is_no_conflict_for_long(cluster, backend):
    cluster.interfere = 2
    backend.change("a", 2.0)
    assert backend.setting.tally.all()["kubernetes_conflicts"] == 2
    cluster.interfere = 99
    with pytest.raises(HostError, match="somebody else changes its scale all the time"):
        backend.change("a", 3.0)


@pytest.mark.parametrize(
    ("verb", "rule"),
    [
        ("get", 'apiGroups: ["apps"], resources: ["deployments/scale"], verbs: ["get"]'),
        ("update", 'apiGroups: ["apps"], resources: ["deployments/scale"], verbs: ["update"]'),
        ("watch", 'apiGroups: ["apps"], resources: ["deployments"], verbs: ["watch"]'),
    ],
)
def test_what_is_forbidden_names_the_rule_to_grant(cluster, backend, verb, rule):
    cluster.forbidden = {verb}
    cluster.delay = 0.5
    with pytest.raises(Refused) as refused:
        backend.change("a", 2.0)
    assert rule in str(refused.value)


def test_a_token_is_read_again_and_a_wrong_one_told(cluster, backend):
    cluster.token = "renewed"  # noqa: S105 (of this test)
    with pytest.raises(Refused, match="does not know the token; renew"):
        backend.observe()
    cluster.token_file.write_text("renewed")
    assert backend.observe()["a"] == 1.0
    cluster.token_file.unlink()
    with pytest.raises(HostError, match=r"token_file .*: No such file or directory"):
        backend.observe()


def test_an_object_that_was_deleted(cluster, backend):
    del cluster.replicas["web-a"]
    with pytest.raises(Refused, match="deployments default/web-a: there is none; make it"):
        backend.change("a", 2.0)


def test_a_server_in_trouble_is_tried_again(cluster, backend):
    cluster.broken = 1
    with pytest.raises(HostError, match="the server answers 500") as failure:
        backend.observe()
    assert not isinstance(failure.value, Refused)
    assert backend.observe()["a"] == 1.0


def test_nobody_answers(cluster, tmp_path):
    resource = KubernetesResource(
        name="web",
        maximum=9.0,
        server="https://127.0.0.1:9",
        object="web-{peer}",
        token_file=str(cluster.token_file),
        ca_file=str(cluster.ca),
    )
    backend = KubernetesBackend(resource, BackendSetting(peers={"a": ()}, directory=tmp_path, tally=Tally()))
    with pytest.raises(HostError, match=r"https://127.0.0.1:9 does not answer"):
        backend.observe()


def test_a_server_with_another_certificate_gets_no_token(cluster, backend, tmp_path):
    (tmp_path / "other").mkdir()
    other = Cluster(tmp_path / "other")
    cluster.ca.write_bytes(other.ca.read_bytes())
    with pytest.raises(HostError, match=r"does not answer: MaxRetryError|SSLError"):
        backend.observe()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"object": "web"}, "resource[0].object: has no {peer}"),
        ({"object": "Web-{peer}"}, "is no name of Kubernetes"),
        ({"server": "http://10.0.0.1:6443"}, "the token would be sent in clear; write https://"),
        ({"namespace": "../kube-system"}, "resource[0].namespace: '../kube-system' is no name of Kubernetes"),
        ({"timeout": "0s"}, "resource[0].timeout: must be more than 0"),
    ],
)
def test_what_cannot_be_written(fields, says):
    problems = []
    given = {"name": "web", "maximum": 3, "server": "https://10.0.0.1:6443", "object": "web-{peer}"} | fields
    convert(given, KubernetesResource, "resource[0]", problems, {})
    assert says in "\n".join(problems)
