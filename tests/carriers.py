"""Putting a scent on a packet and taking it off, by whatever carries it there."""

from scentd.wire.carrier import carrier_of


def insert(packet, parsed, scent):
    return carrier_of(parsed).insert(packet, parsed, scent)


def strip(packet, parsed):
    return carrier_of(parsed).strip(packet, parsed)


def remove(packet, parsed):
    return carrier_of(parsed).remove(packet, parsed)
