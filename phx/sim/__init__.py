"""Whole clusters under simulated time, network and disk: one seed is one run, byte for byte.

The engine, the codec, the journal (segments, carry-over, replay), the chunks of the store and the
table of sessions are the production code; only time, links, the medium under the journal and the
store, and the machines' hosts are simulated. See docs/design/simulation.md.
"""
