import pytest

from scentd.core.allocate.actions.webhook import WebhookAction


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/", "http://", "http://[::1", "http://x:port/", "x"])
def test_other_addresses_are_mistakes(url):
    (problem,) = WebhookAction(url=url).mistakes("policy[0].do")
    assert problem.startswith("policy[0].do.url: ")
    assert WebhookAction(url="https://example.org/x").mistakes("policy[0].do") == []


@pytest.mark.parametrize(
    ("setting", "value"), [("timeout", 0.0), ("timeout", 61.0), ("retry_for", -1.0), ("retry_for", 86401.0)]
)
def test_times_have_bounds(setting, value):
    (problem,) = WebhookAction(url="https://example.org/x", **{setting: value}).mistakes("policy[0].do")
    assert problem.startswith(f"policy[0].do.{setting}: ")
