"""scentd: authenticated, in-band load and health for networks."""

__version__ = "0.1.0"
