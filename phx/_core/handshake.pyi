"""What a connection begins with: native code only, nothing for Python."""
