"""Names that are to be looked up: native code only, see peer_table.pyi."""
