"""What it costs to import a module: its name is the first argument. Nothing else may be imported before."""

import sys
import time

wall, cpu = time.monotonic(), time.process_time()
__import__(sys.argv[1])
wall, cpu = time.monotonic() - wall, time.process_time() - cpu

import json  # noqa: E402

print(json.dumps({"end": "imports", "wall": wall, "cpu": cpu}))
