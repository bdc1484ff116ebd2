"""Checkpoints as folders on a disk: making, finding, verifying, moving them.

Everything here is pure but for `Files`, the disk, so that a simulated one can stand in its place.
Work that changes the disk is a generator, which yields the name of a step after each effect that a
crash may come behind.
"""
