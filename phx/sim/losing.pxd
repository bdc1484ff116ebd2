"""What is taken from the hosts of a world: journals, stores, and with the power what was only
written. Never so much that no majority would be left of nodes that have all their votes.
"""

from phx.sim.host cimport Host
from phx.sim.world cimport World

# The node may lose votes now: with all others that have, or that may at any moment, they are few.
cdef bint spares_a_majority(World world, Host host)
# The host dies, with its machine (`power`) or alone: so, or, if its machine's failure would be one
# too many, alone in any case.
cdef bint with_power(World world, Host host, bint power)
# As of world.pyi.
cdef bint lose_journal(World world, Host host, bint damaged, which, bit)
# Is what the host's store does not keep in a checkpoint, or in the whole log, of another one?
cdef bint elsewhere(World world, Host host, group)
# A host, that is taken down, has another store: what it kept, its journal alone knows.
cdef void change_store(World world, Host host, copy) except *
