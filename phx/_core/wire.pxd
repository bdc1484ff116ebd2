"""Engine messages: what stands in the payload of an ENGINE frame.

A payload is any number of messages, each a header, the fixed part of its kind, and a body, padded
with zeros to a multiple of eight. Messages of one frame belong to many groups.

Message header (24 bytes):

    offset  size  field
    0       4     length   of the whole message, a multiple of eight
    4       1     kind     MSG_*
    5       1     flags
    6       2     space    generation of the group; 0 for a message of a node
    8       4     group
    12      4     config   configuration version of the group at the sender; 1: that of its options
    16      8     ballot

What each message promises is said beside the function that sends it
(acceptor, proposer, learner, proposals, liveness).
"""

from phx._core.native cimport *

cdef enum:
    MESSAGE_HEADER_BYTES = 24
    HOLDS_MAX = 64           # ballot ranges that a Prepare may list
    READ_GROUPS_MAX = 4096   # groups that a ReadAsk or ReadPoint may list

cdef enum MessageKind:
    MSG_PREVOTE = 1
    MSG_PREVOTE_REPLY = 2
    MSG_PREPARE = 3
    MSG_PROMISE = 4
    MSG_ACCEPT = 5
    MSG_ACCEPTED = 6
    MSG_REFUSE = 7
    MSG_CHOSEN = 8
    MSG_CONFIRM = 9
    MSG_LEARN_ASK = 10
    MSG_LEARN = 11
    MSG_FORWARD = 12
    MSG_FORWARD_REPLY = 13
    MSG_TRANSFER = 14
    MSG_HEARTBEAT = 15
    MSG_HEARTBEAT_ACK = 16
    MSG_REJOIN = 17
    MSG_READ_ASK = 18
    MSG_READ_POINT = 19
    MSG_CONFIG = 20
    MSG_CONFIG_ASK = 21

cdef enum RefuseReason:
    REFUSE_BALLOT = 1        # a higher ballot is promised: `promised`
    REFUSE_LEASED = 2        # a grant to `leader` still runs here
    REFUSE_STOPPED = 3       # answer to a Transfer: cannot lead this group
    REFUSE_CONFIG = 4        # a newer configuration is known here: the one in the header

cdef enum PrevoteVerdict:
    PREVOTE_OK = 1
    PREVOTE_HEARS_LEADER = 2
    PREVOTE_BEHIND = 3       # the candidate would have to learn too much first

cdef enum MessageFlag:
    FLAG_LAST = 1            # Promise: last page
    FLAG_WHOLE = 2           # Heartbeat: the whole led set, not changes
    FLAG_NEED_WHOLE = 4      # HeartbeatAck: the changes did not fit what is known here
    FLAG_LOW = 64            # PreVoteReply: above what the sender may promise now (rejoin.pxd)
    FLAG_LACKING = 128       # Confirm: the sender may have forgotten votes (rejoin.pxd)
    FLAG_KEPT = 32           # Transfer: somebody asked for it; balance leaves it there
    FLAG_AGAIN = 16          # Accept: found by phase 1, or fills a gap below; not a new value
    FLAG_MORE = 8            # Promise: last page of this reply, but there is more to be asked for
    # ReadAsk: whoever has votes is to answer, not the leader; ReadPoint: to such a question
    FLAG_QUORUM = 1
    FLAG_ACTIVE = 1          # Config: the members before may be forgotten

cdef enum PointVerdict:
    POINT_OK = 1
    POINT_NOT_LEADER = 2
    POINT_LATER = 3          # it leads, and answers when it has what its phase 1 found chosen

cdef enum EntryFlag:
    ENTRY_CHOSEN = 1         # this value is chosen: beats any ballot
    ENTRY_ELIDED = 2         # the asker has accepted this instance in this ballot or a higher one

cdef packed struct MessageHeader:
    u32 length
    u8 kind
    u8 flags
    u16 space
    u32 group
    u32 config
    u64 ballot

cdef packed struct PrevoteBody:
    u64 chosen_through

cdef packed struct PrevoteReplyBody:
    u64 chosen_through
    u64 promised
    u32 verdict
    u32 leader

cdef packed struct PrepareBody:      # then `holds` × HoldRange
    u64 first                        # where this phase 1 begins
    u64 start                        # report from here on: first, or where the last reply stopped
    # ballot whose holder gave its lease up in favour of the sender; 0: none
    u64 released
    u32 holds
    u32 pad

cdef packed struct HoldRange:        # the sender has accepted first .. last in exactly `ballot`
    u64 first
    u64 last
    u64 ballot

cdef packed struct PromiseBody:      # then `entries` × (ReportedEntry, body, zeros to 8)
    u64 first                        # as in the Prepare
    u64 start                        # likewise
    u64 chosen_through
    u64 floor                        # lowest instance that the sender can still supply
    u64 reply                        # pages of different replies must not be mixed
    u32 page                         # from 0
    u32 entries

cdef packed struct ReportedEntry:
    u64 instance
    u64 ballot
    u32 body_bytes
    u32 flags

cdef packed struct AcceptBody:       # then the value
    u64 instance
    u64 first                        # where this ballot's phase 1 began
    # everything up to here is chosen (label: the ballot of this message)
    u64 watermark
    u32 body_bytes
    u32 pad

cdef packed struct AcceptedBody:
    u64 first
    u64 through
    u64 chosen_through

cdef packed struct RefuseBody:
    u64 promised
    u32 reason
    u32 leader

cdef packed struct ChosenBody:
    u64 through

cdef packed struct LearnAskBody:
    u64 first
    u64 last

# then `entries` × (SuppliedEntry, body, zeros to 8), contiguous from first; ballot: the floor of
# the sender's members, at least that of any membership value among these (0: it knows of none)
cdef packed struct LearnBody:
    u64 first
    u64 chosen_through
    u64 floor                        # lowest instance that the sender can still supply
    u32 entries
    u32 pad

cdef packed struct SuppliedEntry:
    u64 instance
    u32 body_bytes
    u32 pad

cdef packed struct ForwardBody:      # then the items
    u64 low_water
    u64 first_seq
    u32 incarnation
    u32 count
    u32 items_bytes
    # the answer names it: an old refusal is none of a later attempt
    u32 attempt

cdef packed struct ForwardReplyBody:
    u64 first_seq
    u32 incarnation
    u32 count
    u32 verdict
    u32 leader
    u32 attempt
    u32 pad

cdef packed struct HeartbeatBody:    # then `claims` × ClaimChange
    u64 seq
    u64 version                      # of the led set after these changes
    u64 base_version                 # and before them (FLAG_WHOLE: ignored)
    u32 incarnation
    u32 lease_us
    u32 claims
    u32 priority                     # how much the sender wants to lead

cdef packed struct ClaimChange:
    u32 group
    u32 generation
    u64 ballot                       # 0: no longer led

cdef packed struct HeartbeatAckBody: # then `refused` × u32 group: not granted
    u64 seq
    u64 version
    u32 lease_us                     # granted length
    u32 refused
    u32 incarnation                  # of the node that is answered
    u32 late_us                      # how late the sender applies what is chosen (engine_late)

cdef packed struct RejoinBody:       # ballot: the leadership that is asked to hand over
    u64 chosen_through

cdef packed struct ReadAskBody:      # then `groups` × GroupAsked
    u64 round                        # grows with every question of the sender, over all its lives
    u32 groups
    u32 pad

cdef packed struct GroupAsked:
    u32 group
    u32 generation
    u64 ballot                       # in which the receiver leads, as the sender heard; 0: any

cdef packed struct ReadPointBody:    # then `points` × PointAnswer
    u64 round                        # of the question
    u32 points
    u32 pad

cdef packed struct PointAnswer:
    u32 group
    u16 verdict
    u16 generation
    u64 instance                     # POINT_OK: what is chosen, or accepted, is at most this
    u64 ballot                       # of the leadership that answers, or that is known instead

cdef packed struct ConfigBody:       # then the membership value; its version is `config`
    u64 instance                     # that made them the members
    u64 floor                        # their ballots are above it
    u32 bytes
    u32 pad

# Append a message to `out`; returns `out`, which may have moved.
cdef Block* message_append(Block* out, u8 kind, u8 flags, u16 space, u32 group, u32 config,
                           u64 ballot, const void* fixed, u32 fixed_bytes, const void* body,
                           u64 body_bytes) noexcept nogil
# Bytes of the fixed part of a message of this kind; huge for a kind that does not exist.
cdef u32 message_fixed_bytes(u8 kind) noexcept nogil
# Length of the sound message at data[0:count] (header, length, fixed part), or 0.
cdef u32 message_check(const u8* data, u64 count) noexcept nogil
# Walks (entry header, body, pad) sequences; the entry header is `header_bytes` long with its body
# length
# at `length_offset`. Bytes of the entry at data[0:count], or 0 when it does not fit.
cdef u64 entry_stride(const u8* data, u64 count, u32 header_bytes, u32 length_offset) noexcept nogil
