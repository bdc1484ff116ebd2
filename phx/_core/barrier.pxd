"""A change of a group's members: asked for, on its way, and told to those who have missed it.

The members of a version decide instances up to the value that ends it, and those of the next one
all above (docs/design/membership.md, sections 2 and 3). So every message of phase 1 and 2 carries
the version of its sender and is taken by members of that very version alone (M3). Who knows a newer
one refuses; who hears of a newer one asks for it (ConfigAsk), is told (Config), and learns the log
up to there. What a Config says is only where to look: a node is of other members when it has passed
the value itself, or holds a checkpoint. But for one thing: a node that was away for long may find
nobody who has the log that it lacks. If it is told that it is removed, it ends. One wrong answer
would end it for good, so it believes only what it has asked for, or what two members say alike, and
nothing while it leads or hears a leader. A member of a group that has ended is told the same, and
has left like the others.
"""

from phx._core.native cimport *
from phx._core.state cimport *
from phx._core.wire cimport ConfigBody, MessageHeader

cdef enum ChangeVerdict:
    CHANGE_UNDER_WAY = 0         # EVENT_MEMBERS says when it is so, and when it is active
    # nothing was done:
    CHANGE_NOT_LEADING = 1       # this node does not lead, or ends a change that another began
    CHANGE_CONFLICT = 2          # the version is not the one after that of the members there are
    CHANGE_BUSY = 3              # one is under way, or not active yet
    CHANGE_NOT_CAUGHT_UP = 4     # no quorum of the new voters is known to be near
    CHANGE_NO_SLOT = 5           # engine_add_peer first
    CHANGE_UNSOUND = 6           # the bytes are no members

cdef int change_members(Engine* e, Replica* r, const u8* members, u64 nbytes) noexcept nogil
cdef int change_known(Engine* e, Replica* r, u64 version, const u8* members, u64 nbytes,
                      u64 instance, u64 floor, bint active) noexcept nogil
# A message of phase 1 or 2, or to its leader, of a sender of another version, or to a node that is
# removed. `through`: chosen, as it says. True: it may be taken all the same.
cdef bint other_version(Engine* e, Replica* r, Peer* p, const MessageHeader* h,
                        u64 through) noexcept nogil
cdef void on_config(Engine* e, Replica* r, Peer* p, const MessageHeader* h, const ConfigBody* body,
                    const u8* members) noexcept nogil
cdef void on_config_ask(Engine* e, Replica* r, Peer* p, const MessageHeader* h) noexcept nogil
# At the end of a turn, before `pump`: what has become of the members.
cdef void barrier_turn(Engine* e, Replica* r) noexcept nogil
# The role's timer of a node that may not vote, which looks from time to time whether the group goes
# on, and with whom. True: it was for this.
cdef bint barrier_tick(Engine* e, Replica* r) noexcept nogil
