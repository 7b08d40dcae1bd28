"""Generated from bpf/scent_wire.h by scripts/gen-layout. Do not edit."""

from struct import Struct
from typing import Literal

MAGIC = 0x5ce7
VERSION = 1
LEN = 34
TAG_LEN = 8
TAGGED_LEN = 26
IPV4_OPTION_TYPE = 158
IPV4_OPTION_LEN = 36
IPV6_OPTION_TYPE = 0x1e
IPV6_HEADER_LEN = 40
BEACON_PORT = 1021
PORTLESS_MIN = 1280
HEADERS_MAX = 8
PADDING_MAX = 7
OPTIONS_MAX = 8
FRAGMENT_LEN = 13
FRAGMENTS = 10
BODY_LEN = 66
SIGNATURE_LEN = 64
PROFILE_LEN = 130
LEVELS = 22
LEVEL_MAX = 250
LEVEL_UNKNOWN = 255
GLANCE_MAX = 15
BLOOM_LEN = 32
BLOOM_HASHES = 5
PERIOD = 3600
LEAPT_FUTURE = 2
INTERVAL_MIN = 1
INTERVAL_MAX = 60
LIFETIME_INTERVALS = 3
LIFETIME_MORE = 15
LIFETIME_MAX = 55
LAG_MAX = 55

FLAG_PORTS = 1
FLAG_SENDER = 2
FLAG_BEACON = 4

METRIC_CPU = 0
METRIC_MEMORY = 1
METRIC_BANDWIDTH_IN = 2
METRIC_BANDWIDTH_OUT = 3
METRIC_LATENCY = 4
METRIC_JITTER = 5
METRIC_THREAT = 6
METRIC_DATABASE_LOAD = 7
METRIC_REQUEST_LOAD = 8
METRIC_RETRANSMITS = 9
METRIC_FIRST_PRIVATE = 16
METRICS = {
    0: "cpu",
    1: "memory",
    2: "bandwidth_in",
    3: "bandwidth_out",
    4: "latency",
    5: "jitter",
    6: "threat",
    7: "database_load",
    8: "request_load",
    9: "retransmits",
}

VERDICT_ACCEPTED = 0
VERDICT_ABSENT = 1
VERDICT_MALFORMED = 2
VERDICT_UNSUPPORTED_VERSION = 3
VERDICT_UNKNOWN_KEY = 4
VERDICT_WRONG_ADDRESS = 5
VERDICT_WRONG_BINDING = 6
VERDICT_FUTURE = 7
VERDICT_STALE = 8
VERDICT_BAD_TAG = 9
VERDICT_REPLAYED_EPOCH = 10
VERDICTS = {
    0: "accepted",
    1: "absent",
    2: "malformed",
    3: "unsupported-version",
    4: "unknown-key",
    5: "wrong-address",
    6: "wrong-binding",
    7: "future",
    8: "stale",
    9: "bad-tag",
    10: "replayed-epoch",
}

TREATMENT_DROP = 0
TREATMENT_REJECT = 1
TREATMENT_PASS = 2
TREATMENTS = {
    0: "drop",
    1: "reject",
    2: "pass",
}
Treatment = Literal["drop", "reject", "pass"]

UNSTAMPED_NO_PROFILE = 0
UNSTAMPED_NOT_A_PEER = 1
UNSTAMPED_NO_ROOM = 2
UNSTAMPED_TOO_BIG = 3
UNSTAMPED_IPV6_FRAGMENT = 4
UNSTAMPED_HEADERS = 5
UNSTAMPED_ALREADY = 6
UNSTAMPED_MALFORMED = 7
UNSTAMPED_MASQUERADED = 8
UNSTAMPED_TRANSLATED = 9
UNSTAMPED_TUNNELLED = 10
UNSTAMPED = {
    0: "no-profile",
    1: "not-a-peer",
    2: "no-room",
    3: "too-big",
    4: "ipv6-fragment",
    5: "headers",
    6: "already",
    7: "malformed",
    8: "masqueraded",
    9: "translated",
    10: "tunnelled",
}

PROFILE_ERROR_LENGTH = 0
PROFILE_ERROR_VERSION = 1
PROFILE_ERROR_IDENTITY = 2
PROFILE_ERROR_SIGNATURE = 3
PROFILE_ERROR_LEVEL = 4
PROFILE_ERRORS = {
    0: "length",
    1: "version",
    2: "identity",
    3: "signature",
    4: "level",
}

# scent: magic, version_flags, glance, key_id, epoch, fragment_index_count, fragment, tag
SCENT = Struct(">HBB4sIB13s8s")
SCENT_MAGIC_AT = 0
SCENT_VERSION_FLAGS_AT = 2
SCENT_GLANCE_AT = 3
SCENT_KEY_ID_AT = 4
SCENT_EPOCH_AT = 8
SCENT_FRAGMENT_INDEX_COUNT_AT = 12
SCENT_FRAGMENT_AT = 13
SCENT_TAG_AT = 26
SCENT_SIZE = 34

# scent_ipv4_option: type, length, scent
IPV4_OPTION = Struct(">BB34s")
IPV4_OPTION_TYPE_AT = 0
IPV4_OPTION_LENGTH_AT = 1
IPV4_OPTION_SCENT_AT = 2
IPV4_OPTION_SIZE = 36

# scent_ipv6_header: next_header, length, type, option_length, scent, pad_type, pad_length
IPV6_HEADER = Struct(">BBBB34sBB")
IPV6_HEADER_NEXT_HEADER_AT = 0
IPV6_HEADER_LENGTH_AT = 1
IPV6_HEADER_TYPE_AT = 2
IPV6_HEADER_OPTION_LENGTH_AT = 3
IPV6_HEADER_SCENT_AT = 4
IPV6_HEADER_PAD_TYPE_AT = 38
IPV6_HEADER_PAD_LENGTH_AT = 39
IPV6_HEADER_SIZE = 40

# scent_tag_input_ipv4: scent, protocol, zero, ports, source, destination
TAG_INPUT_IPV4 = Struct(">26sBB4s4s4s")
TAG_INPUT_IPV4_SCENT_AT = 0
TAG_INPUT_IPV4_PROTOCOL_AT = 26
TAG_INPUT_IPV4_ZERO_AT = 27
TAG_INPUT_IPV4_PORTS_AT = 28
TAG_INPUT_IPV4_SOURCE_AT = 32
TAG_INPUT_IPV4_DESTINATION_AT = 36
TAG_INPUT_IPV4_SIZE = 40

# scent_tag_input_ipv6: scent, protocol, zero, ports, source, destination
TAG_INPUT_IPV6 = Struct(">26sBB4s16s16s")
TAG_INPUT_IPV6_SCENT_AT = 0
TAG_INPUT_IPV6_PROTOCOL_AT = 26
TAG_INPUT_IPV6_ZERO_AT = 27
TAG_INPUT_IPV6_PORTS_AT = 28
TAG_INPUT_IPV6_SOURCE_AT = 32
TAG_INPUT_IPV6_DESTINATION_AT = 48
TAG_INPUT_IPV6_SIZE = 64

# scent_tag_input_sender: scent, zero
TAG_INPUT_SENDER = Struct(">26s6s")
TAG_INPUT_SENDER_SCENT_AT = 0
TAG_INPUT_SENDER_ZERO_AT = 26
TAG_INPUT_SENDER_SIZE = 32

# scent_body: version, key_id, epoch, interval, overall, levels, lag, bloom
BODY = Struct(">B4sIBB22sB32s")
BODY_VERSION_AT = 0
BODY_KEY_ID_AT = 1
BODY_EPOCH_AT = 5
BODY_INTERVAL_AT = 9
BODY_OVERALL_AT = 10
BODY_LEVELS_AT = 11
BODY_LAG_AT = 33
BODY_BLOOM_AT = 34
BODY_SIZE = 66
