"""The engine: every group of a node, as one pure function of its inputs.

Inputs are bytes, time and durable positions; effects are journal records, frames, chosen ranges,
requests for old entries and events for callers. There is no clock, socket, file, thread or random
source in here: same inputs, byte-identical effects (rule 2). One thread at a time.

A turn is: any number of input calls, then one engine_turn(), whose effects are valid until the
next input call. The cost of a turn depends on the groups that have work.
"""

from phx._core.native cimport *
from phx._core.codec cimport RecordHeader
from phx._core.state cimport *

cdef Engine* engine_new(const EngineOptions* options) noexcept nogil
cdef void engine_free(Engine* e) noexcept nogil

# --- before the start, in this order
# `settled_through`: every instance up to it is in the store, chosen. `generation`: how often the id
# was used before (groups.pxd). Also in a node that runs: then the group is a new one, or one of
# which nobody needs what this node has voted before. -1: there is one of that id, or there was one
# of that generation or a later one; nothing was done.
cdef int engine_add_group(Engine* e, u32 group, u32 generation, u64 settled_through) noexcept nogil
# Before the replay: this group is hosted no more, and was of this generation or an older one.
# Its records are passed over. (Of a group of which nobody says anything they are damage.)
cdef void engine_gone(Engine* e, u32 group, u32 generation) noexcept nogil
# engine_floor and engine_restoring may be told here, too.
# Every record the journal still has, in order. 0, or -1 for a record that cannot be (damage).
cdef int engine_replay(Engine* e, const RecordHeader* header, const u8* body,
                       u64 lsn) noexcept nogil
# Emits the replayed live state again, from position next_lsn on (first turn), raises the
# incarnation, and sends nothing before that is durable. Returns the incarnation.
cdef u32 engine_start(Engine* e, u64 next_lsn, u64 now_us, u64 wall_us) noexcept nogil

# --- inputs
# Payload of one ENGINE frame from a peer whose connection was announced; bytes borrowed for the
# call.
cdef void engine_receive(Engine* e, u32 peer, const u8* data, u64 count) noexcept nogil
# Values of this node's callers: `items` (batch.pxd) at block.data[offset:offset+nbytes]; takes its
# own
# reference. first_seq must continue the group's sequence. 0, or a Verdict: rejected.
cdef int engine_submit(Engine* e, u32 group, u64 first_seq, u32 count, Block* block, u64 offset,
                       u64 nbytes, u64 deadline_us) noexcept nogil
# A read of this node wants a point: an instance that is at least every one that anybody knew to be
# chosen at some moment after this call. It is asked of the leader, or with READ_QUORUM of a
# majority. 0: it stands among the points of this turn or of a later one, once; or a Verdict.
cdef int engine_read(Engine* e, u32 group, u64 ticket, u32 flags, u64 deadline_us) noexcept nogil
cdef void engine_durable(Engine* e, u64 lsn) noexcept nogil
# Everything up to `lsn` was given to the operating system: it outlives this process, and not the
# machine. Only relaxed groups wait for that; what is durable is written.
cdef void engine_written(Engine* e, u64 lsn) noexcept nogil
# Acceptances of the group are told once they are written, and synced within so many microseconds
# (NO_SYNC: with whatever else is synced); 0: they are told when they are durable, which is how a
# group begins. What is to be durable before the first one is told (docs/design/durability.md) is
# the caller's matter. Returns a position: when the journal is durable up to there, all that was
# told before this call is; 0: there is no such group.
cdef u64 engine_durability(Engine* e, u32 group, u64 within_us) noexcept nogil
# Everything that only had to be written is to be synced.
cdef void engine_sync(Engine* e) noexcept nogil
# Monotonic time that counts suspension; wall time only for stamping values.
cdef void engine_advance(Engine* e, u64 now_us, u64 wall_us) noexcept nogil
# A peer's handshake: 0, or -1 when it must be refused (another store id under the same node id).
cdef int engine_connected(Engine* e, u32 peer, u32 incarnation, const u8* store_id) noexcept nogil
cdef void engine_disconnected(Engine* e, u32 peer) noexcept nogil
# Another node may be connected with from now on, and may become a member of groups; before the
# replay, too. `store_id`: of the store that it is known to have, or NULL. Returns a PeerVerdict
# (peers.pxd).
cdef int engine_add_peer(Engine* e, u32 node, const u8* store_id) noexcept nogil
# And no longer: it is a member of no group.
cdef int engine_drop_peer(Engine* e, u32 node) noexcept nogil
# Answer to a Fetch: `entries` is a sequence of {instance u64, bytes u32, pad u32, body, zeros to 8}
# starting with instance `first`; nbytes 0 says that there is nothing to be had.
cdef void engine_supply(Engine* e, u32 group, u32 peer, u64 first, const u8* entries,
                        u64 nbytes) noexcept nogil
# The state machine has applied everything up to `instance`.
cdef void engine_applied(Engine* e, u32 group, u64 instance) noexcept nogil
# Everything of the group up to `through` is now in the store, synced.
cdef void engine_settled(Engine* e, u32 group, u64 through) noexcept nogil
# The store keeps nothing of the group below `floor` (1 to 2**62) any more, and its row says so, and
# that everything below is settled, durably: what is asked for below is answered with the floor. A
# checkpoint that is durable holds the rest. It never falls. Where the engine did not know all of
# it to be chosen (after a restart), it does now, as it would after another restart: it goes on
# behind, announces nothing of it, and does not lead the group at that moment.
cdef void engine_floor(Engine* e, u32 group, u64 floor) noexcept nogil
# A checkpoint of another node is in place: the machine was made of it and everything up to
# `through` (1 to 2**62) counts as applied; the store's row says kept from through + 1, settled
# through `through`, durably. Then as engine_floor(through + 1). `ballot`: the highest one in which
# a value up to `through` was first packed. The promise is at least that from now on, and never less
# than it was; acceptances above `through` stay as they are, for one of them may be the vote that
# made its value chosen. -1: no such group, or not started; nothing was done.
cdef int engine_install(Engine* e, u32 group, u64 through, u64 ballot) noexcept nogil
# The group is to have other members: `members` is the value (members.pxd), of which the version is
# the one after that of the members there are; ballot and time are put in here. Returns a
# ChangeVerdict (barrier.pxd). With CHANGE_UNDER_WAY it is proposed when all that is open is chosen,
# unless this node leads no longer then; what became of it is told by EVENT_MEMBERS. A value without
# members ends the group (members.pxd).
cdef int engine_change_members(Engine* e, u32 group, const u8* members, u64 nbytes) noexcept nogil
# What a store's row, a checkpoint's manifest or another node's answer says of the group's members:
# the value at `instance` (0: none, they were the first) made them, it was counted as chosen in
# `floor` or a lower ballot, and (`active`) those before may be forgotten. After engine_add_group
# and before the start; or in a node that runs, before engine_install of a checkpoint that reaches
# that instance: a node that goes on from there with the members it had would choose an instance
# twice. Older members than are known change nothing. Who has no slot is given one; where none is
# left, the group halts (HALT_SLOTS), here or at the start. -1: there is no such group, or the bytes
# are not sound; nothing was done.
cdef int engine_change_known(Engine* e, u32 group, u64 version, const u8* members, u64 nbytes,
                             u64 instance, u64 floor, bint active) noexcept nogil
# Values of this node's callers that the machine has applied, as a checkpoint's session table says:
# they are not proposed, forwarded or given up any more.
cdef void engine_done(Engine* e, u32 group, u64 first_seq, u32 count) noexcept nogil
# Emit what is still live below `lsn` again and move the floor there (floor_lsn of the next turn).
# Every chosen entry below lsn must be settled. 0, or -1 if one is not.
cdef int engine_retire(Engine* e, u64 lsn) noexcept nogil
# apply failed: this node stops leading and proposing in the group; its acceptor goes on.
cdef void engine_stop_group(Engine* e, u32 group) noexcept nogil
# A machine of the group is being restored. While `on` this node neither leads nor campaigns in it,
# for a leader whose machine is not there answers nobody; in everything else it is as it was: it
# promises, accepts, acknowledges, learns, grants, supplies, and takes values of its callers, which
# go to whoever leads. A leadership is handed over, an attempt under way is given up. Also before
# the start, after engine_add_group. Says nothing of what is chosen: see flow.pxd. When it ends, a
# group that was stopped when it began, or began again, goes on: its machine was made anew. One that
# stopped meanwhile stays so.
cdef void engine_restoring(Engine* e, u32 group, bint on) noexcept nogil
# No promise of this node has a counter above `counter` any more or ever had, in any group: an upper
# bound that is durable outside the journal. It is only raised. Before the start, and then whenever
# EVENT_CEILING asks for it; where it was never given there is no limit, and no rejoin.
cdef void engine_ceiling(Engine* e, u64 counter) noexcept nogil
# Before the start, after the replay: votes of the group from before this life may be lost. The
# replica does not vote until it has rejoined (rejoin.pxd); so it says in its first record. -1: no
# such group, or too late.
cdef int engine_suspect(Engine* e, u32 group) noexcept nogil
# The group is hosted no more: its votes and values are forgotten, its callers are not told, its
# reads are refused, and there never will be one of its generation again. Another one may take its
# index (and, under a later generation, its id) at once.
cdef void engine_drop_group(Engine* e, u32 group) noexcept nogil
# The journal failed: no vote, no claim, no grant any more, in any group.
cdef void engine_poison(Engine* e) noexcept nogil
# A Pressure. Leaderships in which nothing is open are handed over, if somebody takes them.
cdef void engine_pressure(Engine* e, int level) noexcept nogil
# Give the leadership of a group to a member (0: to whoever should have it next), where it stays
# until it ends: balance leaves it alone. A TransferVerdict; -1: no such group. Nothing that was
# proposed fails by it: what is open is found by the next leader, what waits goes to it. If it is
# refused, or nobody answers, this node tries to lead again.
cdef int engine_transfer(Engine* e, u32 group, u32 to) noexcept nogil
# How much this node wants to lead (0 .. PRIORITY_MAX; 0: only if nobody else does). The others hear
# it with the next heartbeat. From the engine's birth on: PRIORITY_USUAL.
cdef void engine_priority(Engine* e, u32 priority) noexcept nogil
# How late this node applies what is chosen, as its callers have it who wait; 0: nobody has to be
# told. The others hear it when they are answered; no rule of the protocol looks at it.
cdef void engine_late(Engine* e, u32 late_us) noexcept nogil
# Hand all leaderships over (a node that closes); they are not taken back.
cdef void engine_resign(Engine* e) noexcept nogil

# --- effects
cdef Effects* engine_turn(Engine* e) noexcept nogil

# --- questions
# The body of a chosen instance if it is in memory, else NULL. The caller takes its own reference.
cdef Block* engine_entry(Engine* e, u32 group, u64 instance) noexcept nogil
# Journal position of the record that holds a chosen, unsettled instance; 0 when there is none.
cdef u64 engine_location(Engine* e, u32 group, u64 instance) noexcept nogil
cdef bint engine_group_status(Engine* e, u32 group, GroupStatus* out) noexcept nogil
# Who its members are, as far as anything has changed.
cdef bint engine_membership(Engine* e, u32 group, GroupMembers* out) noexcept nogil
cdef EngineCounters* engine_counters(Engine* e) noexcept nogil
# How many groups this node leads.
cdef u32 engine_leading(Engine* e) noexcept nogil
# For settling: appends, for every group, the chosen and unsettled entries up to the last one whose
# record lies below `lsn`, in order of group and instance.
cdef void engine_settle_plan(Engine* e, u64 lsn, vector[SettleItem]* out) noexcept nogil
