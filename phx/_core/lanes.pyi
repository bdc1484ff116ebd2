"""Keeping the journal short: native code only, nothing for Python."""
