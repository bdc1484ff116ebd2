"""Connections to the peers: native code only, nothing for Python."""
