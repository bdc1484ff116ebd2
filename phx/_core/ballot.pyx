# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Packed ballots, and the thin door for tests. What they mean: ballot.pxd."""

from phx._core.native cimport u32, u64

cdef enum:
    COUNTER_MAX = 0xFFFFFFFFFFF


cdef u64 ballot_next(u64 above, u32 node) noexcept nogil:
    cdef u64 counter = ballot_counter(above)
    if counter >= <u64>COUNTER_MAX or node == 0 or node > NODE_ID_MAX:
        return 0
    return ballot_make(counter + 1, node)


def make(u64 counter, u32 node):
    """The ballot (counter, node) as one word. ValueError if either does not fit."""
    if counter > <u64>COUNTER_MAX or node > NODE_ID_MAX:
        raise ValueError(f"no ballot has counter {counter} and node {node}")
    return ballot_make(counter, node)


def next_after(u64 above, u32 node):
    """The lowest ballot of ``node`` with a higher counter than ``above``; 0 if there is none."""
    return ballot_next(above, node)


def counter_of(u64 ballot):
    """The counter of a ballot."""
    return ballot_counter(ballot)


def node_of(u64 ballot):
    """The node id of a ballot."""
    return ballot_node(ballot)


def is_hostile(u64 ballot, u64 highest_known):
    """Whether ``ballot`` is too far above ``highest_known`` to be believed."""
    return bool(ballot_hostile(ballot, highest_known))
