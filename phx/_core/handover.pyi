"""Connections on their way to Python: native code only, nothing for Python."""
