"""The native loops of the micro-benchmarks; built by benchmarks/micro/build.py."""
