"""What the engine remembers: one Engine, a Replica per group, a Peer per other node.

Structs only. Which module may change what:

    membership Replica.config, members and version, Engine.configs, slots
    barrier    a change of members, in messages and on its way
    peers      who is connected
    acceptor   promised, slots' accepted ballot and value, acknowledgements
    learner    chosen_through, tail, locations, catch-up
    proposer   role, ballot, phase 1, window, batches, progress of followers
    sessions   runs of this node's callers, forwarding, deadlines
    liveness   peers, heartbeats, claims, grants, elections' timing
    reads      read points that are asked for
    points     those that are told, and checked
    engine     all of it, by routing inputs
"""

from phx._core.native cimport *
from phx._core.window cimport Ring, Timer, Window

cdef extern from * nogil:
    int leading_zeros "__builtin_clzll" (unsigned long long word)    # of what is not 0
    int trailing_zeros "__builtin_ctzll" (unsigned long long word)   # of what is not 0
    int ones "__builtin_popcountll" (unsigned long long word)

cdef enum:
    GROUP_MAX = 1048575          # the highest id: of the directory (docs/design/membership.md)
    MEMBERS_MAX = 15             # of a group
    SLOTS_MAX = 64               # peers of a node, itself included: bits of a u64 mean slots
    RESEND_DOUBLINGS = 2         # of the pause before the same is asked or sent again
    SENT_TIMES = 64

cdef struct EngineOptions:
    u32 node
    u64 cluster
    u32 n_members
    u32 members[MEMBERS_MAX]     # ascending node ids, this node among them
    u64 seed
    u32 window                   # open instances per group
    u64 window_bytes             # and their bytes
    u32 batch_bytes_max          # an instance's body is closed at this size
    u32 heartbeat_us
    u32 lease_us
    u32 election_us              # base of back-off between attempts
    u32 resend_us
    u64 pending_bytes_max        # values waiting at a leader, over all groups, forwarded ones too
    u64 cache_bytes_max          # chosen entries kept for peers and appliers
    u32 frame_bytes_max          # a frame is closed at this size
    u32 value_bytes_max
    bint balance                 # leaderships move back to their preferred node

cdef struct GroupStatus:
    u32 generation
    u32 leader                   # 0: none known
    bint leading
    bint stopped                 # apply failed here
    bint halted                  # a protocol invariant broke here
    bint restoring               # its machine is not there yet: this node does not lead
    bint suspect                 # votes were lost: it does not vote before it has rejoined
    bint ended                   # its last value is chosen: there never will be another one
    u64 promised
    u64 highest_seen             # of all ballots; at least `promised`
    u64 ballot
    u64 chosen_through
    u64 applied_through
    u64 settled_through
    u64 floor                    # lowest instance that this node can still supply
    u64 accepted_last            # highest instance with an acceptance
    u64 sync_within_us           # as of Replica
    u32 waiting_values           # of this node's callers

cdef struct GroupMembers:
    u32 version                  # 1: as the node's options have them
    u8 flags                     # MembersFlag
    u64 instance                 # the value that made them
    u64 floor
    Block* value                 # it (members.pxd), or NULL; the caller takes its own reference

cdef struct EngineCounters:
    u64 elections
    u64 adopted_values
    u64 gap_fills
    u64 step_downs
    u64 forwards
    u64 refused_messages
    u64 resends
    u64 learned_values
    u64 transfers
    u64 proposed_instances
    u64 proposed_values
    u64 prevotes
    u64 hostile_messages
    u64 re_prepares
    u64 rejoins
    u64 read_points              # told to this node's callers
    u64 read_questions           # asked of other nodes
    u64 read_checks              # points that no lease vouched for: a round of heartbeats had to

cdef enum:
    NO_CEILING = 0xFFFFFFFFFFFFFFFF
    NO_SYNC = 0xFFFFFFFFFFFFFFFF # of sync_within_us: never for its own sake
    NO_CLAIM = 0xFFFFFFFFFFFFFFFF
    PRIORITY_USUAL = 100
    PRIORITY_MAX = 255

# ---------------------------------------------------------------------------------------- effects

cdef struct Outgoing:
    u32 peer             # 0: every connected peer
    u64 after            # send once the journal is durable up to here; 0: at once
    Block* frame         # sealed frame; the reference belongs to whoever drains the effects

cdef struct ChosenRange:
    u32 group
    u64 first            # contiguous with what the group announced before
    u64 last

cdef struct Fetch:       # older chosen entries are wanted, to be given back with engine_supply
    u32 group
    u32 peer             # for whom
    u64 first
    u64 last

cdef enum EventKind:
    EVENT_FAILED = 1     # values first_seq .. first_seq+count-1 of this node are waited for no more
    EVENT_LEADER = 2     # it is now `leader` (0: none known), in ballot `first_seq`, its epoch
    EVENT_HALTED = 3     # it votes no more here: a protocol invariant broke; `verdict` says which
    EVENT_PEER_REFUSED = 4  # group: peer node; its store id is not the one it had
    # no log brings the group on: of the members that are connected each has trimmed what comes next
    # here, or knows no more. leader: who has trimmed least, first_seq: its lowest instance.
    # From the driver, leader 0: the applier waits for what is trimmed on this very node.
    EVENT_BELOW = 5
    # The ceiling should be raised to counter `first_seq`, durably (engine_ceiling); what would be
    # above it waits. Told once, and again after each time that it was raised.
    EVENT_CEILING = 6
    # the group has other members since instance `first_seq`: version `count`; verdict: MembersFlag.
    # Told when it is so here, when they are active, and by the start
    EVENT_MEMBERS = 7

cdef enum Verdict:       # of EVENT_FAILED, and of a forwarded proposal
    VERDICT_TIMED_OUT_REJECTED = 1   # never entered a record or an Accept
    VERDICT_TIMED_OUT_UNKNOWN = 2    # may still be chosen
    VERDICT_OVERLOADED = 3           # rejected
    VERDICT_NOT_LEADER = 4           # rejected (used on the wire; the origin tries elsewhere)
    VERDICT_STOPPED_REJECTED = 5     # this node does not propose in the group any more
    VERDICT_STOPPED_UNKNOWN = 6
    VERDICT_NO_QUORUM = 7            # rejected: deadline passed with no leader to be found
    VERDICT_POISONED_REJECTED = 8    # this node's journal failed
    VERDICT_POISONED_UNKNOWN = 9
    VERDICT_ENDED_REJECTED = 10      # the group has its last value, and this one is not below it
    VERDICT_ENDED_UNKNOWN = 11

cdef struct Event:
    u8 kind
    u8 verdict
    u32 group
    u32 count
    u32 leader
    u64 first_seq

cdef struct ReadPoint:       # what becomes of a ticket of engine_read
    u32 group
    u32 verdict          # 0, or a Verdict: rejected
    u64 ticket
    u64 instance         # at least what anybody knew to be chosen when the ticket was taken

cdef struct Effects:
    Block* records       # NULL when there are none; the reference belongs to whoever drains
    u64 lsn_first        # position of the first byte of `records`
    u64 lsn_end          # position after the last byte (of this or an earlier turn)
    bint sync            # somebody waits for records to be durable; False: write lazily (a mark)
    bint write           # somebody waits for them to be written, and no more
    vector[Outgoing] outgoing
    vector[ChosenRange] chosen
    vector[Fetch] fetches
    vector[Event] events
    vector[ReadPoint] points
    vector[u32] republish        # indexes of replicas of which something published may have changed
    u64 wake_at_us       # call engine_advance at the latest then
    # records below are dead as soon as the journal is durable up to floor_after
    u64 floor_lsn
    u64 floor_after

cdef struct SettleItem:
    u32 group
    u32 pad
    u64 instance
    u64 lsn

# ------------------------------------------------------------------------------- a group's replica

cdef enum Pressure:           # how near the journal is to its limit
    PRESSURE_NONE = 0
    # No new values; what was begun is accepted and learned to its end, or it could not be settled.
    PRESSURE_OLD_ONLY = 1
    # Nothing that takes room: promises and carry-over have the reserve.
    PRESSURE_FULL = 2

cdef enum Role:
    ROLE_FOLLOWER = 0
    ROLE_PREVOTING = 1       # asking, without durable effect, whether a campaign makes sense
    ROLE_PREPARING = 2       # phase 1 under way
    ROLE_LEARNING = 3        # phase 1 done, but somebody knows more to be chosen: learn that first
    ROLE_LEADING = 4

cdef struct Reported:        # what phase 1 found for one instance
    u64 instance
    u64 ballot               # highest accepted ballot reported
    Block* value
    bint chosen

cdef struct Promised:        # one member's promise
    u64 reply                # which of its answers
    u64 last                 # highest instance told so far
    u64 start                # from where it is to tell; 0: from the beginning
    u32 pages                # pages seen so far, in order
    bint whole               # the last page has arrived
    u64 chosen_through

cdef struct Phase1:
    u64 first                # s: instances from here on are asked for
    u64 released             # ballot given up in our favour by a Transfer
    u64 max_chosen           # highest chosen_through that a promise told
    u32 max_chosen_node
    bint quorum
    Promised* promised       # by slot
    # By instance, those found only: how far they lie apart is what others said, and costs nothing.
    vector[Reported] reported
    size_t again             # the first of them that has not been proposed again

cdef struct Progress:        # what the leader knows of one member
    u64 through              # it has accepted up to here in the leader's ballot, or knows it chosen
    u64 confirmed            # it knows everything up to here chosen
    u64 seen_us              # last time either grew, or was sent again
    u32 resends              # since either grew
    u64 prepared_us          # last Prepare sent again to it

cdef struct Pending:         # values at a leader, waiting for an instance; `block` is a reference
    Block* block
    u64 offset
    u64 nbytes
    u64 low_water
    u64 first_seq
    u32 count
    u32 node
    u32 incarnation
    u32 attempt              # of the node that forwarded it

cdef struct Lead:            # exists from the start of phase 1 until stepping down
    u64 ballot
    u64 first                # where this ballot's phase 1 began
    u64 next                 # next instance to propose
    u64 recover_through      # instances up to here are adopted or filled, not new
    u64 durable_through      # own votes, contiguous
    u64 watermark_sent       # highest watermark that some Accept or Chosen carried
    u64 open_bytes
    u64 pending_bytes
    u64 since_us
    u64 claim_version        # of our led set, when this claim entered it; NO_CLAIM: it never does
    u64 refusing, lacking    # members as bits: that did not grant it last; that may lack votes
    bint kept                # somebody had it moved here: balance leaves it
    Phase1* phase1           # NULL once everything found by it has been proposed
    vector[Pending] pending  # from `pending_head` on
    size_t pending_head
    Progress* progress       # by slot

cdef struct OwnRun:          # values of this node's callers, not yet known to be chosen
    Block* block
    u64 offset
    u64 nbytes
    u64 first_seq
    u64 deadline_us
    u64 sent_us
    u32 count
    bint sent                # handed to a leader (or to our own proposer); no answer yet
    bint refused             # the last attempt was refused, at sent_us
    u32 attempt              # number of the last attempt
    u32 sent_to              # and whom it went to
    bint maybe               # may stand in a record or an Accept: its outcome is unknown

cdef struct Callers:
    vector[OwnRun] runs      # by sequence, from `head` on
    size_t head
    u64 next_seq
    u32 attempts             # numbers given to attempts
    u64 unsure               # those below may have been chosen unseen: a checkpoint took its place
    bint unsent              # some run may have to be handed out
    u32 values

cdef struct Forwarded:       # the last piece of a forward that a member was answered for
    u32 incarnation
    u32 attempt
    u64 first_seq

cdef struct Config:          # who the members are: membership.pxd
    u64 voters               # slots as bits
    u64 witnesses            # those of the voters that have no machine
    u64 learners             # those that have one, and no vote
    u64 members              # voters and learners
    u32 n_voters
    u32 quorum
    u32 width                # highest slot of a member + 1: arrays by slot are so long
    u8 by_id[MEMBERS_MAX]    # slots of the voters, by ascending node id
    u32 groups               # that have it
    u32 led                  # of these, those that this node claims to lead
    u64 lease_until_us       # leases.lease_until, as of lease_version
    u64 lease_version        # 0: not known

cdef struct Ticket:          # a read of this node that waits for its point
    u64 ticket
    u64 deadline_us
    u64 first                # the first question that was sent after it was taken; 0: none was yet
    u64 told_us              # since when a majority has answered and others are awaited; 0: not yet

cdef struct Asking:          # of one group, and of one kind: asked of its leader, or of a majority
    vector[Ticket] tickets   # as they were taken: `first` grows, those of none come last
    u64 round                # the last question that it was in
    bint awaited             # its answer is: until then, or until the pause is over, none is asked
    bint counted             # it was answered for this group
    u32 node                 # whom it was asked: the leader, as it was believed then
    u64 sent_us
    u32 queued               # in the next question to this node; 0: in none

cdef struct Asker:           # a member that waits for the answer of this leader
    u32 at                   # its slot; this node itself is one
    u64 round                # the question that is being answered
    u64 newest               # the last one that it has asked
    u64 point                # taken when that came, or later, if `beat` is set,
    u64 ballot               # in this ballot
    u64 beat                 # a majority has to grant this heartbeat, or a later one; 0: not yet

cdef struct PointTold:       # by a member, for a quorum read
    u32 at                   # its slot; only voters count
    u64 round                # the latest question that it has answered, and what it said
    u64 point

cdef struct OwnPoint:        # what this node has told itself
    u32 verdict
    u64 round                # 0: nothing
    u64 instance

cdef struct GroupReads:      # exists while reads of the group wait here, own or others'
    u32 place                # in NodeReads.active
    bint lined               # in NodeReads.line
    Asking leader
    Asking quorum
    vector[PointTold] told
    vector[Asker] askers
    OwnPoint own

cdef struct Given:           # a member that this group was given to, and that did not take it yet
    u32 at                   # its slot; once it is heard to lead, this is forgotten
    u32 times                # that it was
    u64 ballot               # that was given up the last time,
    u64 since_us             # and when

cdef enum MembersFlag:       # also in RECORD_MEMBERS
    MEMBERS_ACTIVE = 1       # the members before may be forgotten
    MEMBERS_HELD = 2         # every value up to their instance is here
    MEMBERS_LEFT = 4         # this node was a member, and is none of these
    MEMBERS_ENDED = 8        # there are none: the group has ended (members.pxd)

cdef struct Membership:      # of a group whose members were ever changed, or may have been
    u64 instance             # of the value that made them; 0: none did
    u64 floor                # their ballots are above it
    u64 lsn                  # of the record that says all this
    Block* value             # NULL: they are those of the node's options
    u8 flags                 # MembersFlag
    bint due                 # a leader or candidate knows the next value: it ends, and then passes
    bint fresh               # who leads, and when to try, is to be looked at anew
    bint ended               # callers have heard that this node is no member any more
    u64 before               # slots of the members before, until these are active
    u64 heard_floor          # at least that of any membership value told so far
    u64 gave                 # the ballot that this node led in when it left
    # of a leader
    Block* wanted            # the next value, until it is proposed
    u64 change               # the instance where it is; 0: it is not
    # of what is not known yet
    u64 tellers              # slots of peers that know of newer members: they are asked for the log
    u64 asked                # slots of peers that were asked for newer members,
    u64 asked_us             # the last one then
    u32 heard_version        # what was told unasked, and by whom
    u32 heard_crc
    u64 heard_by

cdef struct Replica:
    u32 group
    u32 index                # in Engine.replicas
    u16 generation           # of its id: how often that was used before (groups.pxd)
    u8 role
    bint dirty               # in Engine.dirty: has something to flush at the end of the turn
    bint ack_due
    bint announce_due
    bint confirm_due
    bint stopped
    bint stop_ends               # what is being restored takes the place of what stopped
    bint halted
    bint restoring
    bint suspect             # may have forgotten votes: rejoin.pxd
    bint rejoin_due          # its leader is to be asked when `followers` are enough
    bint ack_waits           # in Engine.relaxed: it is acknowledged once more is written
    u64 supplied             # members whose question about the log was answered in this turn
    Config* config           # whose votes count; shared with other groups
    Membership* members      # NULL: as the node's options have them, and nobody has said otherwise
    # acceptor
    u64 promised
    u64 promise_lsn
    u64 highest_seen
    u64 ack_first
    u64 ack_through
    u64 ack_ballot
    u64 sync_within_us       # 0: acceptances are told when durable, else once written (relaxed.pxd)
    u64 hard_lsn             # before this is durable nothing is told that is only written
    Window window            # base: chosen_through + 1
    u64 accepted_last
    # learner
    u64 chosen_through
    u64 announced_through
    u64 applied_through
    u64 settled_through
    u64 floor                # lowest instance that this node can still supply; at least 1
    u64 settled_told         # what the last RECORD_SETTLED says; 0: there is none
    u64 settled_lsn          # and where it stands
    u64 suspect_since        # the life that found the last loss; 0: none ever
    u64 suspect_lsn          # of the record that says it
    # the ballot that a suspect replica has asked about; members, as bits, that can follow it
    u64 follow_ballot
    u64 followers
    Ring tail                # Block*: bodies of the last chosen instances, up to chosen_through
    Ring locations           # lsn of instances settled_through + 1 .. chosen_through
    u64 want_through         # known to be chosen elsewhere
    u64 asked_us             # when the running request was sent; 0: none
    u32 asked_node
    u32 asks                 # requests since the last chosen instance
    # members as bits, since the last chosen instance: of what comes next here
    u64 below                # they keep nothing as old
    u64 dry                  # they know nothing, or never say it (filled in only while `below` is)
    u32 below_node           # of `below` the one with the lowest floor
    bint below_told          # EVENT_BELOW has been told since somebody was asked
    u64 below_floor          # that floor
    u32 failures             # attempts to lead since the last success
    u32 version              # of its members; 1: those of the node's options
    vector[Given] given      # transfers that nobody has taken yet
    # who leads
    u64 claim                # highest ballot that a live node claims to lead with
    u32 leader               # its node, or this node, or 0
    u32 told_leader          # the leader that callers were last told of, and its ballot
    u64 told_epoch
    # proposer
    u64 votes                # members that answered a pre-vote with OK, as bits
    u64 busy_until_us        # somebody else's phase 1 is given time until then
    Lead* lead
    Callers* callers
    Forwarded* forwards      # by slot; NULL: nobody has forwarded anything
    GroupReads* reads        # NULL: nothing waits
    # timers: a popped timer counts only if its time is the one noted here
    u64 role_at_us
    u64 callers_at_us
    u64 learn_at_us

cdef enum TransferVerdict:
    TRANSFER_UNDER_WAY = 0       # or the member asked for leads already
    TRANSFER_NOT_LEADING = 1     # this node does not lead; nothing was done
    # that member is not there or far behind, or it cannot lead as far as is known; nothing was done
    TRANSFER_NOT_READY = 2

cdef enum TimerKind:
    TIMER_ROLE = 1
    TIMER_CALLERS = 2
    TIMER_LEARN = 3

# ------------------------------------------------------------------------------------------- peers

cdef struct Claim:
    u32 group
    u32 generation
    u64 ballot

cdef struct ClaimLog:
    u64 members              # who is told, as bits
    u64 ballot
    u32 group
    u32 generation

cdef struct Question:        # read points, asked in one message
    vector[u32] next         # replicas, for the one after it
    u64 round
    u64 sent_us
    size_t left              # groups in it that are not answered yet; 0: the next one may go

cdef struct PeerReads:
    Question question
    # the newest acknowledgement of a heartbeat that said what is not granted
    u64 acked_beat           # which round of heartbeats it answered, or an earlier one
    u64 acked_version        # and of which led set
    u64 beats[SENT_TIMES]    # by sequence: in which round it was sent
    Block* points            # the answer that is being filled,
    u64 points_round
    u8 points_flags

cdef struct ReadAsk:         # came in this turn
    u32 index                # of the replica
    u32 at                   # slot of the member
    u8 flags
    u64 round

cdef struct NodeReads:
    size_t tickets           # of this node's callers
    u64 round                # questions asked
    vector[u32] active       # replicas with reads
    vector[u32] line         # of those, what is to be looked at in this turn
    vector[ReadAsk] asks
    Question question        # of quorum reads: it goes to who votes
    u64 beats                # rounds of heartbeats sent
    size_t checks            # askers that wait for one to be granted
    bint acked               # a heartbeat was acknowledged in this turn
    u64 at_us                # when to look at all of it again
    u64 looked_us

cdef struct Peer:
    u32 node
    u32 slot
    bint connected
    bint known               # store_id is set
    u8 store_id[16]
    u64 store_lsn            # position after the record that remembers the store id
    u32 incarnation
    u64 connected_us
    u64 peer_lsn             # position of that record
    # what it claims, and what we granted it
    bint alive               # its grant has not run out
    u64 alive_since_us
    u64 grant_until_us
    u64 heard_seq               # highest heartbeat heard of this incarnation
    u64 heard_us                # when its last heartbeat came in
    u64 claim_version
    vector[Claim] claims     # by group
    vector[u32] refused      # groups of these claims that are not granted,
    u64 refused_version      # as of this grants_version
    # what it granted us
    u64 lease_until_us       # from the sending time of the last acknowledged heartbeat
    u32 late_us              # how late it applies, as its last acknowledgement said
    u64 ack_seq              # of the newest heartbeat that it has answered
    bint refused_any         # the last acknowledgement named groups that it does not grant
    u64 acked_version
    u64 beat_seq
    u64 beat_sent_us[SENT_TIMES]
    # frames being filled
    Block* now
    Block* later
    u64 answer_bytes         # of long answers to it in this turn
    PeerReads reads

cdef struct Vote:
    u64 lsn_end
    u64 ballot
    u64 instance                # 0: the promise itself
    u32 index

cdef struct Gone:            # a group that is hosted no more
    u32 group
    u32 generation           # this one and all before it

cdef struct Engine:
    EngineOptions options
    u32 n_slots
    u32 slot_node[SLOTS_MAX]    # 0: the slot is free
    u32 own_slot
    u32 incarnation
    bint started
    bint poisoned
    bint resigned
    int pressure
    u64 now_us
    u64 wall_us
    u64 random_state
    u64 replies                 # Promise replies given
    u64 quiet_until_us       # after a restart: promise nothing before
    u64 lease_bound_us       # longest lease that this node may grant (durable)
    u64 ceiling              # no counter above it is promised; NO_CEILING: there is no limit
    bint ceiling_asked       # EVENT_CEILING was told since it was last raised
    # the ceiling at the start: all that was ever promised before is at most this
    u64 rejoin_above
    u64 rejoin_next_us
    # positions
    u64 lsn_end              # of everything emitted
    u64 lsn_needed           # of everything that somebody may wait for
    u64 durable
    u64 written              # as far as it was told, or durable
    u64 relaxed_end          # of everything that only has to be written
    u64 relaxed_due_us       # when that is to be synced; 0: at no time, or all of it is asked for
    u64 marked               # highest durable position that a mark says
    u64 mark_due_us
    u64 sync_us                 # how long a sync takes here: the longest lately, fading
    u64 sync_from_us            # when the record at sync_from_lsn was emitted
    u64 sync_from_lsn           # 0: no sync is being timed
    bint sync_done              # it has become durable; timed at the next advance
    u64 start_lsn            # nothing is sent before the journal is durable up to here
    u64 node_lsn
    u64 floor_lsn
    bint stray                  # a replayed vote is of a group that is not hosted: stray_group
    u32 stray_group
    vector[Replica*] replicas   # by index; NULL: a hole, for the next one that comes
    vector[Replica*] by_group   # direct table; NULL where there is none
    Replica* highest            # group GROUP_MAX: up to there the table would be 8 MiB of holes
    vector[u32] holes           # in `replicas`
    vector[Gone] gone
    bint generations            # some group has one that is not 0
    vector[Config*] configs     # each that some group has, once
    u64 lease_version           # grows when lease_until_us of a peer changes
    Peer peers[SLOTS_MAX]       # by slot; the own one is idle
    u32 connected
    vector[u32] dirty
    vector[Timer] timers
    deque[Vote] votes           # own acceptances and promises waiting to become durable
    deque[Vote] relaxed         # those that are only to be written; ballot 0: acknowledgements
    Ring cached                 # replica index of each chosen entry in memory, oldest first
    u64 cached_bytes
    u64 pending_bytes
    u64 again_bytes             # of values proposed again in this turn
    u64 grants_version          # grows with claims heard, promises, groups stopped or halted
    # our claims
    u64 claim_version
    vector[Claim] claims        # by group
    deque[ClaimLog] claim_log   # its latest changes, the last one made version claim_version
    u32 late_us                 # how late this node applies, for the others to hear
    u64 beat_at_us
    u64 beat_last_us
    bint beat_now               # soon: the claims changed
    bint beat_must              # in this turn: a claim was given up in somebody's favour
    u64 balance_at_us
    NodeReads reads
    # effects of the turn
    Effects effects             # being filled
    Effects handed              # of the last turn, with whoever drains them
    Block* records
    u64 records_hint            # bytes of records, and of a broadcast, in turns of late
    u64 broadcast_hint
    Block* broadcast_now
    Block* broadcast_later
    EngineCounters counters
    # how much each member wants to lead, as it said last; 0: only if nobody else does
    u32 priorities[SLOTS_MAX]

cdef inline Replica* find_group(Engine* e, u32 group) noexcept nogil:
    if group >= e.by_group.size():
        return e.highest if group == GROUP_MAX else NULL
    return e.by_group[group]

cdef inline void touch(Engine* e, Replica* r) noexcept nogil:
    if not r.dirty:
        r.dirty = True
        e.dirty.push_back(r.index)

# What published.pxd says of the group has to be looked at again, at the end of this turn.
cdef inline void republish(Engine* e, Replica* r) noexcept nogil:
    e.effects.republish.push_back(r.index)

# Its reads are looked at in this turn. It has some.
cdef inline void reads_line(Engine* e, Replica* r) noexcept nogil:
    if not r.reads.lined:
        r.reads.lined = True
        e.reads.line.push_back(r.index)

cdef inline bint pending_empty(Lead* lead) noexcept nogil:
    return lead.pending_head == lead.pending.size()

cdef inline Pending* pending_first(Lead* lead) noexcept nogil:
    return &lead.pending[lead.pending_head]

# Where `node` stands among the peers, or -1.
cdef inline int slot_of(Engine* e, u32 node) noexcept nogil:
    cdef u32 i
    if node == 0:
        return -1
    for i in range(e.n_slots):
        if e.slot_node[i] == node:
            return <int>i
    return -1

# The peer at `slot` is a member of the group. Arrays by slot are long enough for these alone.
cdef inline bint config_has(Replica* r, u32 slot) noexcept nogil:
    return r.config.members >> slot & 1

cdef inline bint has_vote(Replica* r, u32 slot) noexcept nogil:
    return r.config.voters >> slot & 1

# Of the slots in `bits` those that have a vote in the group.
cdef inline u32 voters_in(Replica* r, u64 bits) noexcept nogil:
    return <u32>ones(r.config.voters & bits)

# The slots in `bits` hold a quorum of the group.
cdef inline bint quorum_of(Replica* r, u64 bits) noexcept nogil:
    return voters_in(r, bits) >= r.config.quorum

# Takes the lowest slot out of `left`, which is not 0.
cdef inline u32 next_member(u64* left) noexcept nogil:
    cdef u32 slot = <u32>trailing_zeros(left[0])
    left[0] &= left[0] - 1
    return slot
