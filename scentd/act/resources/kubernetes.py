"""Kubernetes: the replicas of anything that has a `scale` subresource: a Deployment, a CloudNativePG Cluster.

The amount goes into spec.replicas through the subresource, with the version that was read, so that a change by somebody
else is a conflict and not lost; then the object is watched until as many replicas are ready. What serves is what
the object's own status calls ready. https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from scentd.act.resources.backend import Backend, Refused
from scentd.config.resource import Resource
from scentd.config.schema import check_http_url, check_positive
from scentd.config.units import Seconds
from scentd.errors import HostError

if TYPE_CHECKING:
    from kubernetes.client import CustomObjectsApi

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
TRIES = 5  # to write against others who write
WATCH = 5  # seconds of one watch: so long the daemon's end may wait for it
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # RFC 1123, as the API wants names


class KubernetesResource(Resource, tag_field="kind", tag="kubernetes", kw_only=True):
    """Replicas of one object for each peer."""

    unit = "replicas"

    server: str  # https://10.0.0.1:6443
    object: str  # its name, with {peer} if there is one for each peer
    namespace: str = "default"
    group: str = "apps"  # of the API; for CloudNativePG postgresql.cnpg.io
    version: str = "v1"
    plural: str = "deployments"  # clusters
    ready: Literal["readyReplicas", "readyInstances", "replicas"] = "readyReplicas"  # of the object's status
    token_file: str = f"{ACCOUNT}/token"  # read for each change: it is renewed
    ca_file: str = f"{ACCOUNT}/ca.crt"
    timeout: Seconds = 120.0  # until as many are ready
    request_timeout: Seconds = 10.0

    def needs_peer_in(self) -> str:
        return "object"

    def mistakes(self, path: str) -> list[str]:
        problems = super().mistakes(path) + check_positive(self, path, "timeout", "request_timeout")
        problems += check_http_url(self.server, f"{path}.server", "https://10.0.0.1:6443")
        if self.server.startswith("http://"):
            problems.append(f"{path}.server: the token would be sent in clear; write https://...")
        for field in ("namespace", "plural", "group", "version"):
            if not NAME.fullmatch(getattr(self, field)):
                problems.append(f"{path}.{field}: {getattr(self, field)!r} is no name of Kubernetes")
        if not NAME.fullmatch(self.object.replace("{peer}", "x")):
            problems.append(f"{path}.object: {self.object!r} is no name of Kubernetes, with {{peer}} in it")
        return problems


class KubernetesBackend(Backend[KubernetesResource]):
    section = KubernetesResource

    def observe(self) -> Mapping[str, float]:
        with self._api() as api:
            return {peer: self._ready(self._get(api, peer)) for peer in self.setting.peers}

    def change(self, peer: str, amount: float) -> None:
        with self._api() as api:
            self._write(api, peer, int(amount))
            self._wait_ready(api, peer, amount)

    # -- the object -----------------------------------------------------------

    def _place(self, peer: str) -> dict[str, Any]:
        r = self.resource
        name = r.object.replace("{peer}", peer.lower().replace("_", "-"))
        if not NAME.fullmatch(name):
            raise Refused(f"resource {r.name}: {name!r}, of peer {peer}, is no name of Kubernetes; rename the peer")
        return {"group": r.group, "version": r.version, "namespace": r.namespace, "plural": r.plural, "name": name}

    def _get(self, api: CustomObjectsApi, peer: str) -> dict[str, Any]:
        place = self._place(peer)
        with self._answers("get", place):
            found: Any = api.get_namespaced_custom_object(**place, _request_timeout=self.resource.request_timeout)
            return dict(found)

    def _ready(self, found: Mapping[str, Any]) -> float:
        status = found.get("status")
        number = status.get(self.resource.ready, 0) if isinstance(status, dict) else 0
        return float(number) if isinstance(number, int) else 0.0

    def _write(self, api: CustomObjectsApi, peer: str, amount: int) -> None:
        """Set spec.replicas; read again if somebody else was faster."""
        from kubernetes.client import ApiException

        place = self._place(peer)
        more: dict[str, Any] = {"_request_timeout": self.resource.request_timeout}
        for _ in range(TRIES):
            with self._answers("get", place, "scale"):
                read: Any = api.get_namespaced_custom_object_scale(**place, **more)
            scale = {key: read[key] for key in ("apiVersion", "kind", "metadata", "spec") if key in read}
            if scale.get("spec", {}).get("replicas", 0) == amount:
                return
            scale["spec"] = {"replicas": amount}
            with self._answers("update", place, "scale"):
                try:
                    api.replace_namespaced_custom_object_scale(**place, body=scale, **more)
                except ApiException as error:
                    if error.status == 409:
                        self.setting.tally.add("kubernetes_conflicts")
                        continue
                    raise
                return
        raise HostError(f"{self._text(place)}: somebody else changes its scale all the time")

    def _wait_ready(self, api: CustomObjectsApi, peer: str, amount: float) -> None:
        """Watch the object until as many are ready. A watch ends after WATCH seconds and is begun anew."""
        from kubernetes.watch import Watch

        place = self._place(peer)
        listed = {key: value for key, value in place.items() if key != "name"}
        deadline = time.monotonic() + self.resource.timeout
        while self._ready(found := self._get(api, peer)) != amount:
            self.wait(0.0)
            if time.monotonic() > deadline:
                have = self._ready(found)
                raise HostError(
                    f"{self._text(place)}: {have:g} of {amount:g} are ready after {self.resource.timeout:g} s; "
                    f"kubectl -n {place['namespace']} describe {place['plural']} {place['name']}"
                )
            with self._answers("watch", place):
                events = Watch().stream(
                    api.list_namespaced_custom_object,
                    **listed,
                    field_selector=f"metadata.name={place['name']}",
                    resource_version=found["metadata"]["resourceVersion"],
                    timeout_seconds=WATCH,
                    _request_timeout=self.resource.request_timeout,
                )
                if any(self._ready(event["object"]) == amount for event in events if event["type"] == "MODIFIED"):
                    return

    # -- the server -----------------------------------------------------------

    @contextmanager
    def _api(self) -> Iterator[CustomObjectsApi]:
        """The API with the token as it is now."""
        from kubernetes.client import ApiClient, Configuration, CustomObjectsApi

        r = self.resource
        try:
            token = Path(r.token_file).read_text().strip()
        except OSError as error:
            raise HostError(f"resource {r.name}: token_file {r.token_file}: {error.strerror}") from None
        if not Path(r.ca_file).is_file():
            raise HostError(f"resource {r.name}: ca_file {r.ca_file}: is not there; it is the cluster's CA")
        settings = Configuration(
            host=r.server.rstrip("/"), api_key={"authorization": f"Bearer {token}"}, ssl_ca_cert=r.ca_file, retries=0
        )
        with ApiClient(settings) as client:
            yield CustomObjectsApi(client)

    @contextmanager
    def _answers(self, verb: str, place: Mapping[str, str], subresource: str = "") -> Iterator[None]:
        """Make a HostError or Refused of what the server answers, or of no answer."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        what = self._text(place)
        try:
            yield
        except ApiException as error:
            kind = f"{place['plural']}/{subresource}" if subresource else place["plural"]
            if error.status == 401:
                raise Refused(f"{what}: the server does not know the token; renew {self.resource.token_file}") from None
            if error.status == 403:
                rule = f'apiGroups: ["{place["group"]}"], resources: ["{kind}"], verbs: ["{verb}"]'
                way_out = f"grant by a Role in namespace {place['namespace']}: {rule}"
                raise Refused(f"{what}: {verb} is forbidden; {way_out}") from None
            if error.status == 404:
                raise Refused(f"{what}: there is none; make it, or correct object, namespace, group, version") from None
            raise HostError(f"{what}: the server answers {error.status} {error.reason}") from None
        except HTTPError as error:
            raise HostError(f"{what}: {self.resource.server} does not answer: {type(error).__name__}") from None

    def _text(self, place: Mapping[str, str]) -> str:
        return f"{place['plural']} {place['namespace']}/{place['name']}"
