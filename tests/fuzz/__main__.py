"""Makes one file of the fuzzing again, and loads it here.

python -m tests.fuzz FORMAT NUMBER [FOLDER]
"""

import sys
from pathlib import Path

from tests.fuzz import worker
from tests.fuzz.cases import FORMATS, case
from tests.fuzz.harness import put

name, number = sys.argv[1], int(sys.argv[2])
path = Path(*sys.argv[3:4], f"{name}_{number}{FORMATS[name].ending}")
told, content = case(name, number)
put(path, content)
print(f"{path}: {told}, {len(content)} bytes")
print(worker.attempt(path))
