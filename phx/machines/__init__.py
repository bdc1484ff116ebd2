"""Ready-made machines, and examples of how to write one."""

from phx.machines.counter import Counter
from phx.machines.kv import KeyValue
from phx.machines.lease import Leases

__all__ = ["Counter", "KeyValue", "Leases"]
