"""A setting for readers that need none."""

from scentd.collect.source import Setting

SETTING = Setting((), lambda event: None)
