"""How full a journal may become: native code only, nothing for Python."""
