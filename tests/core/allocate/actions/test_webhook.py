import pytest

from scentd.core.allocate.actions.webhook import WebhookAction


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/", "http://", "http://[::1", "http://x:port/", "x"])
def test_other_addresses_are_mistakes(url):
    (problem,) = WebhookAction(url=url).mistakes("policy[0].do")
    assert problem.startswith("policy[0].do.url: ")
    assert WebhookAction(url="https://example.org/x").mistakes("policy[0].do") == []
