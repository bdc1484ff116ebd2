"""What leaves: native code only, nothing for Python."""
