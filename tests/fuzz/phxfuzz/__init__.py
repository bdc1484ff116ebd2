"""Fuzz targets over the compiled core, built on demand by ``tests/fuzz/build.py``."""
