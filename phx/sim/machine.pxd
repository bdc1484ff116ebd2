"""The machine of the simulator's own workload; see machine.pyx for its commands."""
