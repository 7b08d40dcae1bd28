"""Files that a configuration includes: read in order, and their mistakes told under their own names."""

import pytest

from scentd.errors import ConfigError
from scentd.kinds import load_config

POLICY = '[[policy]]\nname = "{}"\nwhen = "{}"\ndo = {{ kind = "quarantine" }}\n'


@pytest.fixture
def files(tmp_path):
    (tmp_path / "policies").mkdir()

    def write(main, **others):
        for name, text in others.items():
            (tmp_path / "policies" / f"{name}.toml").write_text(text)
        path = tmp_path / "scentd.toml"
        path.write_text(main)
        return path

    return write


def problems(path):
    with pytest.raises(ConfigError) as raised:
        load_config(path)
    return raised.value.problems


def test_policies_of_other_files_come_behind_in_order(files):
    main = 'include = ["policies/*.toml"]\n' + POLICY.format("own", "cpu > 0.5")
    path = files(main, b=POLICY.format("second", "cpu > 0.6"), a=POLICY.format("first", "cpu > 0.7"))
    assert [p.name for p in load_config(path).policy] == ["own", "first", "second"]


def test_a_mistake_is_told_under_the_file_that_has_it(files, tmp_path):
    main = 'include = ["policies/*.toml"]\n' + POLICY.format("own", "cpu > 0.5")
    path = files(main, a=POLICY.format("first", "cpu > 0.7") + POLICY.format("wrong", "cpuu > 0.7"))
    (problem,) = problems(path)
    where = tmp_path / "policies" / "a.toml"
    assert problem == f"{where}: policy[1].when: unknown variable: cpuu; did you mean cpu?"


def test_an_absolute_name_and_one_that_is_named_twice(files, tmp_path):
    other = tmp_path / "policies" / "a.toml"
    path = files(f'include = ["{other}", "policies/*.toml"]\n', a=POLICY.format("first", "cpu > 0.7"))
    assert [p.name for p in load_config(path).policy] == ["first"]


@pytest.mark.parametrize(
    ("main", "others", "problem"),
    [
        ("include = 3", {}, 'include: write a list of files, e.g. include = ["policies/*.toml"]'),
        ('include = ["policies/a.toml"]', {}, "policies/a.toml: No such file or directory; correct include"),
        ('include = ["policies/*.toml"]', {"a": "x ="}, "policies/a.toml: not valid TOML: Invalid value"),
        (
            'include = ["policies/*.toml"]',
            {"a": "[daemon]\n"},
            "policies/a.toml: daemon: an included file has arrays of tables alone, such as [[policy]]",
        ),
    ],
)
def test_what_cannot_be_included(files, main, others, problem):
    (found,) = problems(files(main, **others))
    assert problem in found


def test_a_pattern_without_files_includes_nothing(files):
    assert load_config(files('include = ["policies/*.toml"]')).policy == []
