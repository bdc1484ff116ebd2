"""Chosen entries on their way out of the engine: native code only, nothing for Python."""
