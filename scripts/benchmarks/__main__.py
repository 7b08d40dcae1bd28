# SPDX-License-Identifier: GPL-2.0-only
"""What scentd costs: `bench dataplane`, `nfqueue`, `interfaces`, `fleet` (root), `profiles`, `allocator`. --help."""

import argparse
import json
import signal
import sys
from typing import Any

from benchmarks import allocator, dataplane, fleet, interfaces, nfqueue, plot, profiles
from benchmarks.lab import LabError
from scentd.errors import HostError

SUITES = {
    "dataplane": dataplane,
    "nfqueue": nfqueue,
    "interfaces": interfaces,
    "fleet": fleet,
    "profiles": profiles,
    "allocator": allocator,
}


def parsed() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=raw)
    suites = parser.add_subparsers(dest="suite", required=True)
    for name, suite in SUITES.items():
        summary = suite.__doc__.strip().splitlines()[0]
        sub = suites.add_parser(name, help=summary, description=suite.__doc__, formatter_class=raw)
        sub.add_argument("--json", action="store_true", help="end with one line of JSON that holds every row")
        sub.add_argument("--quick", action="store_true", help="one very short round: does it work, not how fast it is")
        sub.add_argument("--rounds", type=int, help=f"repetitions of each measurement (default: {suite.ROUNDS})")
        if suite is allocator:
            sub.add_argument("--traces", metavar="DIR", default="", help="with multi/smd_machine-*.csv.gz, for levels")
        if suite is dataplane:
            kinds = ", ".join(dataplane.KINDS)
            sub.add_argument("--kinds", metavar="A,B", type=listed, help=f"only these (default: {kinds})")
            sub.add_argument("--plot", metavar="FILE.png", help="draw a figure of it; needs matplotlib")
    return parser.parse_args()


def listed(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in dataplane.KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(dataplane.KINDS)}")
    return names


def measured(args: argparse.Namespace) -> dict[str, Any]:
    suite = SUITES[args.suite]
    rounds = args.rounds or (1 if args.quick else suite.ROUNDS)
    if suite is allocator:
        return allocator.run(rounds, args.quick, args.traces)
    if suite is not dataplane:
        return suite.run(rounds, args.quick)
    if args.plot:
        plot.require(args.plot)  # not after ten minutes
    result = dataplane.run(rounds, args.quick, args.kinds or tuple(dataplane.KINDS))
    if args.plot:
        plot.draw(result, args.plot)
    return result


def main() -> int:
    args = parsed()
    # What was set up is taken down on the way out; SIGTERM alone would skip that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        result = measured(args)
    except (LabError, HostError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(SUITES[args.suite].table(result))
    if args.json:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
