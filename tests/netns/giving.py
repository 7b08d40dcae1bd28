"""scentd with a source and a kind of resource that files tell and show: `python giving.py run --config FILE`.

The load is what a file says (toys.py); what is given is files in a directory (act/filing.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import toys
from act.filing import FilesBackend

from scentd import cli
from scentd.act.resources import RESOURCES

if __name__ == "__main__":
    toys.enter()
    RESOURCES["files"] = FilesBackend
    sys.exit(cli.main())
