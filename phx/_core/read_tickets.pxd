"""Nothing for other native modules: see read_tickets.pyi."""
