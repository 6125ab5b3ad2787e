"""``python -m reconnect_fsm`` is the command ``reconnect-fsm``."""

import sys

from reconnect_fsm.cli import main

if __name__ == "__main__":
    sys.exit(main())
