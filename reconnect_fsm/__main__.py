"""``python -m reconnect_fsm`` is the command ``reconnect-fsm``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
