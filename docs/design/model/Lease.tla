------------------------------- MODULE Lease -------------------------------
(***************************************************************************)
(* The lease of one group and the reads that rest on it: "Leases and       *)
(* elections" of docs/design/protocol.md, sections 2 to 4 of               *)
(* docs/design/reads.md. docs/design/model.md says what is left out.       *)
(*                                                                         *)
(* Which value stands where is Phx.tla's business: here an instance is a   *)
(* number, and a node accepts all that a leader proposed up to one.        *)
(*                                                                         *)
(* Time: in a Tick every clock goes on by one of Rates, each by its own.   *)
(* So two clocks differ by at most the ratio of the largest to the         *)
(* smallest, over any time. Whatever counts down does so by the clock of   *)
(* its node. Messages are never taken out of msgs.                         *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets, Sequences

CONSTANTS
    Nodes,          \* the members
    Owner,          \* <<node, ...>>: Owner[b] alone may lead in ballot b
    MaxInst,        \* instances 1 .. MaxInst
    MaxBeat,        \* heartbeats of one ballot
    MaxCrash,       \* crashes in one behaviour
    Crashers,       \* nodes that may crash
    Rates,          \* how far a clock may go on in one tick
    HoldFor,        \* the lease as its holder counts it, from sending
    GrantFor,       \* and as the granter does, from receipt
    Resigns,        \* ballots whose leader may hand over
    Readers,        \* nodes that may be asked for a read point, once in a behaviour
    Bug             \* "none", or the name of the rule that a broken variant breaks

VARIABLES
    prom,           \* the promise of a node
    dur,            \* the same, as far as it is durable
    acc,            \* [b, u]: accepted in b all that its leader proposed up to u; durable
    last,           \* the highest instance ever accepted; durable
    ct,             \* chosen_through
    lead,           \* the leadership, or NoLead
    grant,          \* [b, left]: the grant of a node, and how long it goes on
    held,           \* held[n][p]: how long n, who leads, may count on p
    sent,           \* sent[n][s]: the time since n sent heartbeat s of its ballot, at most HoldFor
    quiet,          \* how long a node promises nothing, after a restart
    msgs,           \* every message that ever left
    known,          \* the highest instance that any node ever knew to be chosen
    read,           \* the checked read of this behaviour
    crashes

vars == <<prom, dur, acc, last, ct, lead, grant, held, sent, quiet, msgs, known, read, crashes>>

Ballots == 1 .. Len(Owner)
Beats == 1 .. MaxBeat
Majority(s) == 2 * Cardinality(s) > Cardinality(Nodes)
Max(a, b) == IF a > b THEN a ELSE b
Less(a, b) == IF a > b THEN a - b ELSE 0
Largest(s) == CHOOSE x \in s : \A y \in s : x >= y

NoLead == [role |-> "follow", b |-> 0, next |-> 0, rec |-> 0, maxc |-> 0, beats |-> 0]
NoGrant == [b |-> 0, left |-> 0]
NoneHeld == [p \in Nodes |-> 0]
NoneSent == [s \in Beats |-> HoldFor]
NoRead == [st |-> "none", at |-> CHOOSE n \in Nodes : TRUE, b |-> 0, beat |-> 0, point |-> 0,
           need |-> 0]

Init ==
    /\ prom = [n \in Nodes |-> 0] /\ dur = prom
    /\ acc = [n \in Nodes |-> [b |-> 0, u |-> 0]]
    /\ last = [n \in Nodes |-> 0] /\ ct = last
    /\ lead = [n \in Nodes |-> NoLead]
    /\ grant = [n \in Nodes |-> NoGrant]
    /\ held = [n \in Nodes |-> NoneHeld]
    /\ sent = [n \in Nodes |-> NoneSent]
    /\ quiet = [n \in Nodes |-> 0]
    /\ msgs = {} /\ known = 0 /\ read = NoRead /\ crashes = 0

-----------------------------------------------------------------------------
(* The lease                                                               *)

\* What the leader may count on, and what the granter is bound by.
Runs(n) == Majority({n} \union {p \in Nodes : held[n][p] > 0})
Believes(n) == lead[n].role \in {"lead", "resigned"} /\ Runs(n)

\* leases.grant_runs: a promise to somebody else than the candidate, unless he gave it up.
GrantRuns(n, b, released) ==
    /\ prom[n] # 0 /\ Owner[prom[n]] # Owner[b] /\ prom[n] # released
    /\ IF Owner[prom[n]] = n
       THEN lead[n].role = "lead" /\ lead[n].b = prom[n] /\ Runs(n)
       ELSE grant[n].b = prom[n] /\ grant[n].left > 0
MayPromise(n, b, released) == quiet[n] = 0 /\ ~GrantRuns(n, b, released)

EndLead(n) ==
    /\ lead' = [lead EXCEPT ![n] = NoLead]
    /\ held' = [held EXCEPT ![n] = NoneHeld]
    /\ sent' = [sent EXCEPT ![n] = NoneSent]

Beat(n) ==
    LET s == lead[n].beats + 1 IN
    /\ lead[n].role = "lead" /\ s <= MaxBeat
    /\ lead' = [lead EXCEPT ![n].beats = s]
    /\ sent' = [sent EXCEPT ![n][s] = 0]
    /\ msgs' = msgs \union {[t |-> "beat", b |-> lead[n].b, s |-> s]}
    /\ UNCHANGED <<prom, dur, acc, last, ct, grant, held, quiet, known, read, crashes>>

\* A heartbeat is acknowledged for the group if the promise is exactly the claimed ballot. Nothing
\* waits for the promise to be durable. Refusals are left out: without them more is believed.
Grant(n) ==
    \E m \in msgs :
    /\ m.t = "beat" /\ n # Owner[m.b] /\ prom[n] = m.b
    /\ [t |-> "ack", n |-> n, b |-> m.b, s |-> m.s] \notin msgs
    /\ \A x \in msgs : x.t = "ack" /\ x.n = n /\ x.b = m.b => x.s < m.s
    /\ grant' = [grant EXCEPT ![n] = [b |-> m.b, left |-> IF Bug = "grant_without_margin" THEN HoldFor
                                                       ELSE GrantFor]]
    /\ msgs' = msgs \union {[t |-> "ack", n |-> n, b |-> m.b, s |-> m.s]}
    /\ UNCHANGED <<prom, dur, acc, last, ct, lead, held, sent, quiet, known, read, crashes>>

HearAck(n) ==
    \E m \in msgs :
    LET left == IF Bug = "lease_measured_from_receipt" THEN HoldFor
                ELSE HoldFor - sent[n][m.s] IN
    /\ m.t = "ack" /\ lead[n].role = "lead" /\ lead[n].b = m.b
    /\ left > held[n][m.n]
    /\ held' = [held EXCEPT ![n][m.n] = left]
    /\ UNCHANGED <<prom, dur, acc, last, ct, lead, grant, sent, quiet, msgs, known, read, crashes>>

\* (Of a clock by which nothing runs it does not matter how fast it goes.)
Idle(n) == /\ grant[n].left = 0 /\ quiet[n] = 0 /\ held[n] = NoneHeld /\ sent[n] = NoneSent
Passing ==
    LET rates == IF Bug = "clocks_beyond_the_bound" THEN {1, 3} ELSE Rates IN
    {r \in [Nodes -> rates] : \A n \in Nodes : Idle(n) => r[n] = Largest(rates)}
Tick ==
    \E r \in Passing :
    /\ grant' = [n \in Nodes |-> LET left == Less(grant[n].left, r[n]) IN
                                 IF left = 0 THEN NoGrant ELSE [grant[n] EXCEPT !.left = left]]
    /\ held' = [n \in Nodes |-> [p \in Nodes |-> Less(held[n][p], r[n])]]
    /\ sent' = [n \in Nodes |-> [s \in Beats |-> IF sent[n][s] + r[n] >= HoldFor THEN HoldFor
                                                ELSE sent[n][s] + r[n]]]
    /\ quiet' = [n \in Nodes |-> Less(quiet[n], r[n])]
    /\ UNCHANGED <<prom, dur, acc, last, ct, lead, msgs, known, read, crashes>>

-----------------------------------------------------------------------------
(* Elections and the log                                                   *)

\* What a transfer to n has released.
Released(n) == {0} \union {m.b : m \in {x \in msgs : x.t = "transfer" /\ x.to = n}}

Prepare(n) ==
    \E b \in Ballots : \E released \in Released(n) :
    /\ Owner[b] = n /\ b > prom[n]
    /\ MayPromise(n, b, released)
    /\ prom' = [prom EXCEPT ![n] = b]
    /\ dur' = [dur EXCEPT ![n] = b]
    /\ lead' = [lead EXCEPT ![n] = [NoLead EXCEPT !.role = "prepare", !.b = b]]
    /\ held' = [held EXCEPT ![n] = NoneHeld]
    /\ sent' = [sent EXCEPT ![n] = NoneSent]
    /\ msgs' = msgs \union {[t |-> "prepare", b |-> b, rel |-> released]}
    /\ UNCHANGED <<acc, last, ct, grant, quiet, known, read, crashes>>

\* The answer waits for the promise to be durable. Without an answer (lost, or not durable in
\* time) it binds all the same, until a crash.
Promise(n) ==
    \E m \in msgs :
    /\ m.t = "prepare" /\ n # Owner[m.b]
    /\ \/ m.b = prom[n]
       \/ m.b > prom[n] /\ MayPromise(n, m.b, m.rel)
    /\ \A x \in msgs : ~(x.t = "promise" /\ x.n = n /\ x.b = m.b)
    /\ prom' = [prom EXCEPT ![n] = m.b]
    /\ IF m.b > prom[n] THEN EndLead(n) ELSE UNCHANGED <<lead, held, sent>>
    /\ \/ /\ dur' = [dur EXCEPT ![n] = m.b]
          /\ msgs' = msgs \union {[t |-> "promise", n |-> n, b |-> m.b, last |-> last[n],
                                   ct |-> ct[n]]}
       \/ /\ m.b > prom[n] /\ n \in Crashers /\ crashes < MaxCrash
          /\ UNCHANGED <<dur, msgs>>
    /\ UNCHANGED <<acc, last, ct, grant, quiet, known, read, crashes>>

\* What is told as chosen is learned before anything is proposed (in one step here); rec is what
\* is found beyond.
EndPhase1(n) ==
    LET all == {m \in msgs : m.t = "promise" /\ m.b = lead[n].b} IN
    /\ lead[n].role = "prepare"
    /\ \E s \in SUBSET all :
       LET c == Largest({ct[n]} \union {m.ct : m \in s}) IN
       /\ Majority({n} \union {m.n : m \in s})
       /\ \A m \in s : ~Majority({n} \union {x.n : x \in s \ {m}})
       /\ ct' = [ct EXCEPT ![n] = c]
       /\ lead' = [lead EXCEPT ![n].role = "lead", ![n].next = c + 1,
                               ![n].rec = Largest({last[n], c} \union {m.last : m \in s})]
    /\ UNCHANGED <<prom, dur, acc, last, grant, held, sent, quiet, msgs, known, read, crashes>>

\* First what phase 1 found, then new values.
Propose(n) ==
    LET i == lead[n].next IN
    /\ lead[n].role = "lead" /\ i <= MaxInst
    /\ lead' = [lead EXCEPT ![n].next = i + 1]
    /\ acc' = [acc EXCEPT ![n] = [b |-> lead[n].b, u |-> i]]
    /\ last' = [last EXCEPT ![n] = Max(@, i)]
    /\ msgs' = msgs \union {[t |-> "accept", b |-> lead[n].b, u |-> i]}
    /\ UNCHANGED <<prom, dur, ct, grant, held, sent, quiet, known, read, crashes>>

Accept(n) ==
    \E m \in msgs :
    /\ m.t = "accept" /\ n # Owner[m.b]
    /\ \/ m.b = prom[n]
       \/ m.b > prom[n] /\ MayPromise(n, m.b, 0)
    /\ acc[n].b = m.b => m.u > acc[n].u
    /\ prom' = [prom EXCEPT ![n] = m.b]
    /\ dur' = [dur EXCEPT ![n] = m.b]
    /\ IF m.b > prom[n] THEN EndLead(n) ELSE UNCHANGED <<lead, held, sent>>
    /\ acc' = [acc EXCEPT ![n] = [b |-> m.b, u |-> m.u]]
    /\ last' = [last EXCEPT ![n] = Max(@, m.u)]
    /\ msgs' = msgs \union {[t |-> "accepted", n |-> n, b |-> m.b, u |-> m.u]}
    /\ UNCHANGED <<ct, grant, quiet, known, read, crashes>>

CountChosen(n) ==
    \E c \in ct[n] + 1 .. MaxInst :
    /\ lead[n].role = "lead" /\ c < lead[n].next
    /\ Majority({n} \union {m.n : m \in {x \in msgs : x.t = "accepted" /\ x.b = lead[n].b
                                                     /\ x.u >= c}})
    /\ ct' = [ct EXCEPT ![n] = c]
    /\ known' = Max(known, c)
    /\ UNCHANGED <<prom, dur, acc, last, lead, grant, held, sent, quiet, msgs, read, crashes>>

\* Transfer and resign: the lease is given up first.
Resign(n) ==
    /\ lead[n].role = "lead" /\ lead[n].b \in Resigns
    /\ IF Bug = "lease_read_after_resigning"
       THEN /\ lead' = [lead EXCEPT ![n].role = "resigned"]
            /\ UNCHANGED <<held, sent>>
       ELSE EndLead(n)
    /\ \E to \in Nodes \ {n} :
           msgs' = msgs \union {[t |-> "transfer", b |-> lead[n].b, to |-> to]}
    /\ UNCHANGED <<prom, dur, acc, last, ct, grant, quiet, known, read, crashes>>

\* What is not durable is lost: a promise of which nobody was told but by grants, all grants, and
\* what was known to be chosen.
Crash(n) ==
    /\ n \in Crashers /\ crashes < MaxCrash
    /\ crashes' = crashes + 1
    /\ prom' = [prom EXCEPT ![n] = dur[n]]
    /\ ct' = [ct EXCEPT ![n] = 0]
    /\ EndLead(n)
    /\ grant' = [grant EXCEPT ![n] = NoGrant]
    /\ quiet' = [quiet EXCEPT ![n] = IF Bug = "quiet_time_skipped" THEN 0 ELSE GrantFor]
    /\ UNCHANGED <<dur, acc, last, msgs, known, read>>

-----------------------------------------------------------------------------
(* Reads                                                                   *)

\* Lemma R2: what phase 1 found is chosen.
Ready(n) ==
    \/ lead[n].role = "lead" /\ ct[n] >= lead[n].rec
    \/ lead[n].role = "lead" /\ Bug = "read_before_recovered"
    \/ lead[n].role = "resigned"

\* The leader takes the point when it is asked, and a heartbeat that it has not sent yet must be
\* acknowledged. That the read begins only then asks most of it.
NextBeat(n) == IF Bug = "read_checked_by_an_older_beat" THEN lead[n].beats
               ELSE lead[n].beats + 1
Ask(n) ==
    /\ read.st = "none" /\ n \in Readers
    /\ lead[n].role = "lead" /\ Ready(n)
    /\ read' = [st |-> IF Bug = "read_without_a_check" THEN "done" ELSE "asked", at |-> n,
                b |-> lead[n].b, beat |-> NextBeat(n), point |-> ct[n], need |-> known]
    /\ UNCHANGED <<prom, dur, acc, last, ct, lead, grant, held, sent, quiet, msgs, known, crashes>>

\* In another ballot the point is taken anew.
AskAgain ==
    LET n == read.at IN
    /\ read.st = "asked" /\ lead[n].role = "lead" /\ lead[n].b # read.b /\ Ready(n)
    /\ read' = [read EXCEPT !.b = lead[n].b, !.beat = NextBeat(n),
                            !.point = IF Bug = "read_point_kept_across_a_ballot" THEN @
                                      ELSE ct[n]]
    /\ UNCHANGED <<prom, dur, acc, last, ct, lead, grant, held, sent, quiet, msgs, known, crashes>>

Answer ==
    LET n == read.at IN
    /\ read.st = "asked" /\ lead[n].role = "lead" /\ lead[n].b = read.b
    /\ Majority({n} \union {m.n : m \in {x \in msgs : x.t = "ack" /\ x.b = read.b
                                                     /\ x.s >= read.beat}})
    /\ read' = [read EXCEPT !.st = "done"]
    /\ UNCHANGED <<prom, dur, acc, last, ct, lead, grant, held, sent, quiet, msgs, known, crashes>>

Next ==
    \/ Tick \/ AskAgain \/ Answer
    \/ \E n \in Nodes :
        \/ Beat(n) \/ Grant(n) \/ HearAck(n)
        \/ Prepare(n) \/ Promise(n) \/ EndPhase1(n) \/ Propose(n) \/ Accept(n) \/ CountChosen(n)
        \/ Resign(n) \/ Crash(n) \/ Ask(n)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What of a state makes a difference to what follows, and is all that TLC *)
(* compares.                                                               *)

Leads(b) == lead[Owner[b]].role = "lead" /\ lead[Owner[b]].b = b
Matters(m) ==
    LET o == Owner[m.b] IN
    CASE m.t = "beat" -> Leads(m.b) \/ \E n \in Nodes \ {o} : prom[n] = m.b
      [] m.t = "ack" -> Leads(m.b)
      [] m.t = "prepare" -> \E n \in Nodes \ {o} :
                               \/ prom[n] < m.b
                               \/ prom[n] = m.b /\ lead[o].b = m.b /\ lead[o].role = "prepare"
      [] m.t = "promise" -> lead[o].b = m.b /\ lead[o].role = "prepare"
      [] m.t = "accept" -> \E n \in Nodes \ {o} : prom[n] <= m.b
      [] m.t = "accepted" -> Leads(m.b) /\ m.u > ct[o]
      [] m.t = "transfer" -> prom[m.to] <= m.b
Seen == <<prom, dur, acc, last, ct, lead, grant, held, sent, quiet, {m \in msgs : Matters(m)},
          known, read, crashes>>

-----------------------------------------------------------------------------
(* What must hold.                                                         *)

\* Leases do not overlap.
U11_OneLease == \A n, o \in Nodes : Believes(n) /\ Believes(o) => n = o

\* What a lease read would answer from, and what a checked read did, covers all that was known to
\* be chosen anywhere when the read began.
U14_LeaseRead == \A n \in Nodes : Believes(n) /\ Ready(n) => ct[n] >= known
U14_CheckedRead == read.st = "done" => read.point >= read.need

TypeOK ==
    /\ \A n \in Nodes :
        /\ dur[n] <= prom[n] /\ acc[n].b <= dur[n]
        /\ ct[n] <= MaxInst /\ ct[n] <= known
        /\ lead[n].role \in {"follow", "prepare", "lead", "resigned"}
        /\ lead[n].role \in {"prepare", "lead"} => lead[n].b = prom[n] /\ Owner[lead[n].b] = n
        /\ lead[n].role \in {"follow", "prepare"} => held[n] = NoneHeld
        /\ grant[n].left <= GrantFor /\ quiet[n] <= GrantFor
=============================================================================
