"""Makes checkpoint_lab importable for the tests in this folder, and others."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
