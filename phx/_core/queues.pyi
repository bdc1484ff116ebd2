"""Queues between threads: native code only, nothing for Python."""
