"""python -m scentd, better `python -P -m scentd`: without -P Python looks into the working directory first."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory: what lies there does not run as root from here on
    from scentd.cli import main

    sys.exit(main())
