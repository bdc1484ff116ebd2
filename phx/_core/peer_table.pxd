"""Nothing for other native modules: see peer_table.pyi."""
