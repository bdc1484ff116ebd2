"""The turn of a node: native code only, nothing for Python."""
