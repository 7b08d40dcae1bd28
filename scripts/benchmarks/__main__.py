# SPDX-License-Identifier: GPL-2.0-only
"""What scentd costs on this machine: `bench nfqueue` (root) and `bench profiles`. See --help."""

import argparse
import json
import sys

from benchmarks import nfqueue, profiles
from benchmarks.lab import LabError

SUITES = {"nfqueue": nfqueue, "profiles": profiles}


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=raw)
    suites = parser.add_subparsers(dest="suite", required=True)
    for name, suite in SUITES.items():
        summary = suite.__doc__.strip().splitlines()[0]
        sub = suites.add_parser(name, help=summary, description=suite.__doc__, formatter_class=raw)
        sub.add_argument("--json", action="store_true", help="end with one line of JSON that holds every row")
        sub.add_argument("--quick", action="store_true", help="one very short round: does it work, not how fast it is")
        sub.add_argument("--rounds", type=int, help=f"repetitions of each measurement (default: {suite.ROUNDS})")
    args = parser.parse_args()
    try:
        result = SUITES[args.suite].run(args.rounds or (1 if args.quick else SUITES[args.suite].ROUNDS), args.quick)
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(SUITES[args.suite].table(result))
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
