"""The native half of a node from birth to death: native code only, nothing for Python."""
