"""Nothing for other native modules: see member_table.pyi."""
