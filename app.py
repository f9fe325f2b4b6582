"""The inspect app: `python app.py` is `kit app`."""

import sys

from kit.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
