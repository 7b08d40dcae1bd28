import pytest

from scentd.collect.proc import read_proc
from scentd.collect.source import CollectError


def test_a_file_that_is_not_there():
    with pytest.raises(CollectError, match="/proc/no-such: No such file"):
        read_proc("no-such")
