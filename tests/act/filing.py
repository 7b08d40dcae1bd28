"""A toy kind of resource on a real file system: the amount is the number of files in the peer's directory."""

from pathlib import Path

from scentd.act.actuator import Tally
from scentd.act.resources.backend import Backend, BackendSetting, Refused
from scentd.config.resource import Resource
from scentd.errors import HostError


class FilesResource(Resource, tag_field="kind", tag="files"):
    directory: str
    unit = "files"


class FilesBackend(Backend[FilesResource]):
    section = FilesResource

    def observe(self):
        root = Path(self.resource.directory)
        if (root / "broken").exists():
            raise HostError("broken: remove it")
        return {d.name: float(len(list(d.iterdir()))) for d in root.iterdir() if d.is_dir()}

    def change(self, peer, amount):
        root = Path(self.resource.directory)
        if (root / "refuse").exists():
            raise Refused("refuse: remove it")
        if (root / "fail").exists():
            raise HostError((root / "fail").read_text() or "fail: remove it")
        if (root / "lie").exists():
            return
        while (root / "hang").exists():
            self.wait(0.02)
        (root / peer).mkdir(exist_ok=True)
        for i in range(int(amount)):
            (root / peer / str(i)).touch()
        for extra in [f for f in (root / peer).iterdir() if int(f.name) >= amount]:
            extra.unlink()


def setting(directory, *peers):
    return BackendSetting(peers=dict.fromkeys(peers, ()), directory=Path(directory), tally=Tally())
