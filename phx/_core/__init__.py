"""The native half of phx: consensus, journal and network, compiled, without the GIL.

Nothing in here is public. Each ``.pxd`` reads as its module's table of contents.
"""
