"""What users and phx itself use to test programs that are replicated."""
