"""The trace of a debug run: native code only, nothing for Python."""
