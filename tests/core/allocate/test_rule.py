"""What a rule remembers is what it would find anew."""

from hypothesis import given
from hypothesis import strategies as st

from scentd.config.policy import Policy
from scentd.config.resource import Resource
from scentd.core.allocate.actions.amount import AmountAction
from scentd.core.allocate.rule import Facts, Rule
from scentd.model import Profile, View
from scentd.wire import bloom

RESOURCES = {"r": Resource(name="r", minimum=0.0, maximum=9.0)}
BOUNDS = {"current": 2.0, "minimum": 0.0, "maximum": 9.0}
EXPRESSIONS = [
    "cpu > 0.5",
    "cpu > 0.5 && memory < 0.3",
    "cpu > 0.8 || has('x')",
    'has("x") && !has("y")',
    'has("n" + peer)',
    "1.0 / (cpu - memory) > 2.0",
    "threat > 0.3 && load > 0.2",
    "age > 3.0",
    'peer == "a" && overall < 0.5',
    "current * cpu > 1.0",
]
LEVEL = st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.9])


@st.composite
def views(draw):
    profiles = []
    for i in range(draw(st.integers(1, 3))):
        levels = draw(st.dictionaries(st.sampled_from(["cpu", "memory", "threat"]), LEVEL))
        items = draw(st.lists(st.sampled_from(["x", "y", "na"])))
        epoch = 100 - 5 * i
        overall = draw(st.none() | LEVEL)
        profiles.append(Profile("a", epoch, 5, overall, levels, bloom.make(items, epoch)))
    glance = draw(LEVEL), draw(LEVEL)
    return View("a", tuple(profiles), draw(st.sampled_from([0.0, 5.0])), *glance)


@given(
    st.sampled_from(EXPRESSIONS),
    st.sampled_from(["ceil(current * cpu / 0.7)", "1.0 / (cpu - memory)", "has('x') ? 1 : 2", 4.0]),
    st.sampled_from([(1, 1), (1, 2), (2, 2), (2, 3)]),
    st.lists(views(), min_size=1, max_size=12),
)
def test_remembered_is_as_evaluated_anew(when, to, counts, seen):
    policy = Policy("p", when, AmountAction(resource="r", to=to), matches=counts[0], profiles=counts[1])
    rule = Rule(policy, RESOURCES)
    for view in seen + seen:
        facts, fresh = Facts(view, 16.0), Rule(policy, RESOURCES)
        found, slow = rule.outcome(facts, BOUNDS), rule.evaluate_view(facts, BOUNDS)
        assert (found.outcome, found.detail) == (slow.outcome, slow.detail)
        assert rule.asked(facts, BOUNDS) == fresh.asked(facts, BOUNDS)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr("scentd.core.allocate.rule.CACHE_MAX", 10)
    rule = Rule(Policy("p", "cpu > 0.5", AmountAction(resource="r", to=1.0)), RESOURCES)
    for i in range(100):
        profile = Profile("a", 100, 5, None, {"cpu": i / 100}, bytes(32))
        assert rule.outcome(Facts(View("a", (profile,), 0.0), 0.0), BOUNDS).outcome == ("true" if i > 50 else "false")
    assert len(rule.when._results) <= 10
