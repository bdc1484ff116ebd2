"""Changes of members in a world, and what of them only who looks at all of it knows.

Python alone calls it: see altering.pyi. What a host does about it is in `changing`.
"""
