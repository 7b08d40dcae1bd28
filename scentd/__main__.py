"""python -m scentd"""

import sys

from scentd.cli import main

if __name__ == "__main__":
    sys.exit(main())
