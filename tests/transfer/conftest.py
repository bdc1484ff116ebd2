"""Makes transfer_lab and checkpoint_lab importable for the tests in this folder."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "checkpoint")]
