"""Settings for all tests."""

from hypothesis import settings

# The same examples on every run and machine; speed is never asserted.
settings.register_profile("scentd", derandomize=True, deadline=None, print_blob=False)
settings.load_profile("scentd")
