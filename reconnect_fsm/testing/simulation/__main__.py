"""``python -m reconnect_fsm.testing.simulation``."""

import sys

from reconnect_fsm.testing.simulation.command import main

sys.exit(main())
