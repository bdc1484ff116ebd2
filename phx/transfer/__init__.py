"""Checkpoints and log from peer to peer, over a connection of their own.

Pure: no socket, no thread, and no clock but the ``now_us`` that is given. Disk comes in as `Files`.
"""
