"""What ``phx bench`` measures, and what it compares phx with."""
