"""What is done to a world by which replicas diverge, and what only who looks at all of it knows.

Python alone calls it: see straying.pyi. What a host does about it is in `diverging`.
"""
