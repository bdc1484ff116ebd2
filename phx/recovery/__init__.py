"""``phx recover``: a new cluster from what is left of one that lost its majorities.

Read docs/design/membership.md, section 10, first: what it can promise, and what not. ``seen`` reads
the folders of survivors, ``choice`` decides what the log of each group is, and touches nothing;
``making`` writes the folder of the new cluster's first node, whole or not at all.
"""
