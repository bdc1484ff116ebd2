-------------------------------- MODULE Phx --------------------------------
(***************************************************************************)
(* One group of phx, by the rules of docs/design/protocol.md as the code   *)
(* keeps them. docs/design/model.md says which action is which function,   *)
(* what is left out, and what was checked.                                 *)
(*                                                                         *)
(* A node has a journal as it is in memory (jour) and as it is on disk     *)
(* (dur). Sync makes them equal; Crash falls back to dur. Replay gives a   *)
(* prefix of what was written, at least what was synced: a crash that      *)
(* keeps more than dur is Sync followed by Crash, so no third state is     *)
(* needed. Every action writes at most one record, so every prefix occurs. *)
(*                                                                         *)
(* Messages are never taken out of msgs: any of them may arrive never,     *)
(* late, often, in any order. A message of the later lane waits in later   *)
(* until everything its node has written is durable, and a crash drops it. *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets, Sequences

CONSTANTS
    Nodes,          \* the members
    Owner,          \* <<node, ...>>: Owner[b] alone may lead in ballot b
    MaxInst,        \* instances 1 .. MaxInst
    Window,         \* an Accept above chosen_through + Window is not taken
    MaxCrash,       \* crashes in one behaviour, those with a loss among them
    Losers,         \* nodes that may lose their journal
    MaxLoss,        \* how often a node may
    Salvages,       \* TRUE: any part of a lost journal may be found again
    Syncs,          \* "any": each record becomes durable later, if at all, by Sync; or "soon":
                    \* at once, but for a leader's acceptance that a crash will take (model.md)
    Settles,        \* TRUE: nodes settle what is chosen into their store
    Carries,        \* TRUE: segments are given up, and what is chosen in them is carried over
    StepsDown,      \* nodes that may step down from leading without a reason (Transfer, stop)
    Hears,          \* Hears[b]: nodes that messages of phase 1 and 2 of b ever reach
    Bug             \* "none", or the name of the rule that a broken variant breaks

VARIABLES
    jour,           \* [prom, acc, cho] of a node, with what is not yet durable
    dur,            \* the same, as far as it is durable
    settled,        \* through this instance, the store holds the values; durable
    ct,             \* chosen_through
    lead,           \* the leadership, or NoLead
    later,          \* messages that wait for a sync
    msgs,           \* every message that ever left
    told,           \* <<instance, value>> that some node took for chosen (and may Learn to others)
    votes,          \* history: <<node, instance, ballot, value>> durably accepted
    life,           \* history: restarts of a node
    loss            \* [sus, top, n, at] of a node: whether it is suspect; its ceiling at its last
                    \* loss (0: none); how often it lost; what it knew as chosen then

vars == <<jour, dur, settled, ct, lead, later, msgs, told, votes, life, loss>>

Ballots == 1 .. Len(Owner)
Inst == 1 .. MaxInst
Quorum == IF Bug = "quorum_minus_one" THEN Cardinality(Nodes) \div 2
          ELSE Cardinality(Nodes) \div 2 + 1

Max(a, b) == IF a > b THEN a ELSE b

\* Values. Each proposal of a leadership is distinct, also from one of the same ballot after a
\* restart, and so is each no-op: phx's carry the ballot and the time.
NoVal == <<>>
Fresh(b, n) == <<b, life[n]>>
Noop(b, n) == <<b, life[n], 0>>
IsNoop(v) == Len(v) = 3

NoAcc == [b |-> 0, v |-> NoVal]
NoEntry == <<0, NoVal, "none">>
NoEntries == [i \in Inst |-> NoEntry]
NoLoss == [sus |-> FALSE, top |-> 0, n |-> 0, at |-> 0]
NoLead == [role |-> "follow", b |-> 0, first |-> 0, next |-> 0, maxc |-> 0, rec |-> NoEntries]

Init ==
    /\ jour = [n \in Nodes |-> [prom |-> 0, acc |-> [i \in Inst |-> NoAcc],
                                cho |-> [i \in Inst |-> NoVal]]]
    /\ dur = jour
    /\ settled = [n \in Nodes |-> 0]
    /\ ct = [n \in Nodes |-> 0]
    /\ lead = [n \in Nodes |-> NoLead]
    /\ later = [n \in Nodes |-> {}]
    /\ msgs = {}
    /\ told = {}
    /\ votes = {}
    /\ life = [n \in Nodes |-> 0]
    /\ loss = [n \in Nodes |-> NoLoss]

Crashes == LET Sum[s \in SUBSET Nodes] ==
                   IF s = {} THEN 0
                   ELSE LET n == CHOOSE x \in s : TRUE IN life[n] + Sum[s \ {n}]
           IN Sum[Nodes]

-----------------------------------------------------------------------------
(* What a turn does with its records and messages (effects.seal).          *)

VotesOf(n, j) ==
    {<<n, i, j.acc[i].b, j.acc[i].v>> : i \in {k \in Inst : j.acc[k].b > 0}}

\* The journal becomes j; `now` leaves at once, `after` when all that is written is durable.
TurnDurable(n, j, now, after) ==
    /\ jour[n] = dur[n]
    /\ jour' = [jour EXCEPT ![n] = j]
    /\ dur' = [dur EXCEPT ![n] = j]
    /\ votes' = votes \union VotesOf(n, j)
    /\ msgs' = msgs \union now \union after
    /\ UNCHANGED later

TurnUnsynced(n, j, now, after) ==
    /\ jour' = [jour EXCEPT ![n] = j]
    /\ UNCHANGED <<dur, votes>>
    /\ IF \/ j = dur[n]
          \/ Bug = "reply_early" /\ \A m \in after : m.t # "prepare"
          \/ Bug = "prepare_early" /\ \A m \in after : m.t = "prepare"
          \/ Bug = "duplicate_early" /\ j = jour[n]
       THEN /\ msgs' = msgs \union now \union after
            /\ UNCHANGED later
       ELSE /\ msgs' = msgs \union now
            /\ later' = [later EXCEPT ![n] = @ \union after]

Turn(n, j, now, after) ==
    IF Syncs = "soon" THEN TurnDurable(n, j, now, after) ELSE TurnUnsynced(n, j, now, after)

\* Nothing is written; `now` leaves.
Say(now) ==
    /\ msgs' = msgs \union now
    /\ UNCHANGED <<jour, dur, votes, later>>

Sync(n) ==
    /\ Syncs = "any"
    /\ jour[n] # dur[n]
    /\ dur' = [dur EXCEPT ![n] = jour[n]]
    /\ votes' = votes \union VotesOf(n, jour[n])
    /\ msgs' = msgs \union later[n]
    /\ later' = [later EXCEPT ![n] = {}]
    /\ UNCHANGED <<jour, settled, ct, lead, told, life>>

\* The value that a node holds at an instance: one that is marked chosen goes before.
Held(j, i) == IF j.cho[i] # NoVal THEN j.cho[i] ELSE j.acc[i].v

\* The largest k from c to `to` such that ok(i) for all i in c + 1 .. k.
Through(c, to, ok(_)) ==
    IF c >= to THEN c
    ELSE CHOOSE k \in c .. to : /\ \A i \in c + 1 .. k : ok(i)
                                /\ k = to \/ ~ok(k + 1)

\* chosen_through becomes c or more: what is marked chosen right above follows (advance_known).
Known(j, c) == Through(c, MaxInst, LAMBDA i : j.cho[i] # NoVal)
Advance(n, j, c) ==
    LET to == Known(j, c) IN
    /\ ct' = [ct EXCEPT ![n] = to]
    /\ told' = told \union {<<i, Held(j, i)>> : i \in ct[n] + 1 .. to}

\* A higher promise ends the node's own leadership (may_promise).
Obey(n) == lead' = [lead EXCEPT ![n] = IF Bug = "lead_on" THEN @ ELSE NoLead]

\* Whether the owner of b still reads answers to messages of b. Answers that nobody will read,
\* or that tell the leader nothing, are left out: a node never enters a phase of a ballot twice.
Read(b, roles) == lead[Owner[b]].b = b /\ lead[Owner[b]].role \in roles

-----------------------------------------------------------------------------
(* Phase 1                                                                 *)

\* One promise for all instances; the Prepare waits for it.
Prepare(n) ==
    \E b \in Ballots :
    LET j == [jour[n] EXCEPT !.prom = b] IN
    /\ Owner[b] = n
    /\ b > jour[n].prom
    /\ loss[n].sus /\ Bug # "rejoin_below_the_ceiling" => b > loss[n].top
    /\ lead' = [lead EXCEPT ![n] = [NoLead EXCEPT !.role = "prepare", !.b = b,
                                                  !.first = ct[n] + 1, !.next = ct[n] + 1]]
    /\ Turn(n, j, {}, {[t |-> "prepare", b |-> b, first |-> ct[n] + 1,
                        holds |-> [i \in Inst |-> IF i > ct[n] /\ j.cho[i] = NoVal
                                                  THEN j.acc[i].b ELSE 0]]})
    /\ UNCHANGED <<settled, ct, told, life>>

ChosenMark == IF Bug = "chosen_mark_ignored" THEN "acc" ELSE "cho"

Report(n, m) ==
    [i \in Inst |->
        LET a == jour[n].acc[i] IN
        IF i < Max(m.first, ct[n] + 1) THEN NoEntry
        ELSE IF jour[n].cho[i] # NoVal
             THEN <<a.b, jour[n].cho[i], ChosenMark>>
        ELSE IF a.b = 0 THEN NoEntry
        ELSE IF m.holds[i] >= a.b THEN <<a.b, NoVal, "elided">>
        ELSE <<a.b, a.v, "acc">>]

\* The answer to a duplicate is made and sent like the first. One answer is enough here: the
\* asker counts one, and answers before it are Follow (they were lost).
Promise(n) ==
    \E m \in msgs :
    /\ m.t = "prepare"
    /\ ~loss[n].sus \/ Bug = "suspect_answers_prepare"
    /\ n # Owner[m.b] /\ n \in Hears[m.b]
    /\ m.b >= jour[n].prom
    /\ Read(m.b, {"prepare"})
    /\ \A x \in msgs \union later[n] : ~(x.t = "promise" /\ x.n = n /\ x.b = m.b)
    /\ IF m.b > jour[n].prom THEN Obey(n) ELSE UNCHANGED lead
    /\ Turn(n, [jour[n] EXCEPT !.prom = m.b], {},
            {[t |-> "promise", n |-> n, b |-> m.b, ct |-> ct[n], rep |-> Report(n, m)]})
    /\ UNCHANGED <<settled, ct, told, life>>

\* A higher ballot is promised without an answer that matters: by an Accept (first half of
\* acceptor.follow), by a Prepare whose answer is lost, by proposer.prepare_again.
Follow(n) ==
    \E b \in {m.b : m \in {x \in msgs : x.t \in {"prepare", "accept"}}} :
    /\ ~loss[n].sus
    /\ n # Owner[b] /\ n \in Hears[b]
    /\ b > jour[n].prom
    /\ Obey(n)
    /\ Turn(n, [jour[n] EXCEPT !.prom = b], {}, {})
    /\ UNCHANGED <<settled, ct, told, life>>

\* P2c: the value of the highest ballot; one that is marked chosen beats any.
Best(entries) ==
    LET real == {e \in entries : e[3] \in {"acc", "cho"}}
        sure == {e \in real : e[3] = "cho"} IN
    IF real = {} THEN NoEntry
    ELSE IF sure # {} THEN CHOOSE e \in sure : TRUE
    ELSE IF Bug = "adopt_lowest" THEN CHOOSE e \in real : \A f \in real : e[1] <= f[1]
    ELSE CHOOSE e \in real : \A f \in real : e[1] >= f[1]

Own(n, i) ==
    LET a == jour[n].acc[i] IN
    IF jour[n].cho[i] # NoVal
    THEN <<a.b, jour[n].cho[i], ChosenMark>>
    ELSE IF a.b > 0 THEN <<a.b, a.v, "acc">> ELSE NoEntry

\* What n will propose again, from what it was told and what it has itself (lead_begin).
Leading(n, ld) ==
    [ld EXCEPT !.role = "lead", !.next = ct[n] + 1,
               !.rec = [i \in Inst |->
                   LET best == Best({ld.rec[i], Own(n, i)}) IN
                   IF i <= ct[n] \/ best = NoEntry THEN NoEntry ELSE <<0, best[2], "acc">>]]

Watermark(b, c) == IF c = 0 THEN {} ELSE {[t |-> "chosen", b |-> b, c |-> c]}

Majorities(n, promises) ==
    LET mine == IF dur[n].prom >= lead[n].b THEN 1 ELSE 0
        need == IF loss[n].sus /\ Bug # "rejoin_counts_itself"
                THEN Cardinality(Nodes) - Quorum + 1 \* its own promise tells nothing
                ELSE Quorum - mine IN
    {s \in SUBSET promises : /\ Cardinality(s) = need
                             /\ \A x, y \in s : x.n = y.n => x = y}

\* Promises of a majority, the node's own counted when durable; for a suspect node, of so many
\* others that any majority which it belonged to has one of them besides. It leads at once, or learns first.
EndPhase1(n) ==
    LET ld == lead[n] IN
    /\ ld.role = "prepare"
    /\ \E s \in Majorities(n, {m \in msgs : m.t = "promise" /\ m.b = ld.b}) :
       LET maxc == CHOOSE c \in {0} \union {m.ct : m \in s} : \A m \in s : c >= m.ct
           got == [ld EXCEPT !.rec = [i \in Inst |->
                      IF i <= ct[n] THEN NoEntry ELSE Best({m.rep[i] : m \in s})]] IN
       /\ \A m \in s : \A i \in Inst :
              m.rep[i][3] = "elided" /\ i > ct[n] => jour[n].acc[i].b >= m.rep[i][1]
       /\ IF maxc > ct[n] /\ Bug # "floor_ignored"
          THEN /\ lead' = [lead EXCEPT ![n] = [got EXCEPT !.role = "learn", !.maxc = maxc]]
               /\ Say({})
          ELSE /\ lead' = [lead EXCEPT ![n] = Leading(n, got)]
               /\ Say(Watermark(ld.b, ct[n]))
    /\ UNCHANGED <<settled, ct, told, life>>

EndLearning(n) ==
    /\ lead[n].role = "learn"
    /\ ct[n] >= lead[n].maxc
    /\ lead' = [lead EXCEPT ![n] = Leading(n, @)]
    /\ Say(Watermark(lead[n].b, ct[n]))
    /\ UNCHANGED <<settled, ct, told, life>>

-----------------------------------------------------------------------------
(* Phase 2                                                                 *)

\* What phase 1 found comes first, no-ops in its gaps, then new values.
Propose(n) ==
    LET ld == lead[n]
        i == Max(ld.next, ct[n] + 1)
        found == {k \in Inst : ld.rec[k] # NoEntry}
        v == IF \A k \in found : k < i THEN Fresh(ld.b, n)
             ELSE IF i \in found THEN ld.rec[i][2] ELSE Noop(ld.b, n) IN
    /\ ld.role = "lead"
    /\ i <= MaxInst /\ i <= ct[n] + Window
    /\ LET j == [jour[n] EXCEPT !.acc[i] = [b |-> ld.b, v |-> v]]
           accept == {[t |-> "accept", b |-> ld.b, first |-> ld.first, i |-> i, v |-> v]} IN
       \/ Turn(n, j, accept, {})
       \/ Syncs = "soon" /\ Crashes < MaxCrash /\ TurnUnsynced(n, j, accept, {})
    /\ lead' = [lead EXCEPT ![n].next = i + 1,
                            ![n].rec = IF \A k \in found : k <= i THEN NoEntries ELSE @]
    /\ UNCHANGED <<settled, ct, told, life>>

\* Accepted(b, first, u): everything from first to u accepted in exactly b, or known chosen.
Ack(n, m, j) ==
    LET has(i) == j.acc[i].b = m.b \/ j.cho[i] # NoVal
        u == IF Bug = "ack_across_hole"
             THEN CHOOSE k \in 0 .. MaxInst : /\ k = 0 \/ has(k) \/ k = ct[n]
                                              /\ \A i \in k + 1 .. MaxInst : ~has(i)
             ELSE Through(Max(m.first - 1, ct[n]), MaxInst, has) IN
    IF Read(m.b, {"lead"}) /\ u > ct[Owner[m.b]]
    THEN {[t |-> "accepted", n |-> n, b |-> m.b, u |-> u]} ELSE {}

Accept(n) ==
    \E m \in msgs :
    LET take == /\ m.i > ct[n] /\ m.i <= ct[n] + Window
                /\ jour[n].acc[m.i].b # m.b /\ jour[n].cho[m.i] = NoVal
        j == IF take THEN [jour[n] EXCEPT !.acc[m.i] = [b |-> m.b, v |-> m.v]] ELSE jour[n] IN
    /\ m.t = "accept"
    /\ ~loss[n].sus
    /\ n # Owner[m.b] /\ n \in Hears[m.b]
    /\ m.b = jour[n].prom
    /\ Turn(n, j, {}, Ack(n, m, j))
    /\ UNCHANGED <<settled, ct, lead, told, life>>

\* Only the leader of b counts acceptances of b, its own when durable (compute_chosen).
CountChosen(n) ==
    LET ld == lead[n]
        own == IF Bug = "own_vote_early" THEN jour[n] ELSE dur[n]
        mine == Through(ct[n], MaxInst, LAMBDA i : own.acc[i].b = ld.b)
        acks == {m \in msgs : m.t = "accepted" /\ m.b = ld.b} IN
    /\ ld.role = "lead"
    /\ \E c \in ct[n] + 1 .. ld.next - 1 :
       LET others == {m.n : m \in {a \in acks : a.u >= c}} IN
       /\ Cardinality(others) + (IF mine >= c THEN 1 ELSE 0) >= Quorum
       /\ Advance(n, jour[n], c)
       /\ Say(Watermark(ld.b, Known(jour[n], c)))
    /\ UNCHANGED <<settled, lead, life>>

-----------------------------------------------------------------------------
(* Learning                                                                *)

\* A watermark (b, c) counts only where the entry held was accepted in exactly b.
HearWatermark(n) ==
    \E m \in msgs :
    LET fits(i) ==
            \/ jour[n].cho[i] # NoVal
            \/ jour[n].acc[i].b = m.b
            \/ Bug = "watermark_any_ballot" /\ jour[n].acc[i].b > 0
            \/ Bug = "watermark_higher_ballot" /\ jour[n].acc[i].b >= m.b
        c == Through(ct[n], m.c, fits) IN
    /\ m.t = "chosen"
    /\ lead[n].role # "lead"
    /\ c > ct[n]
    /\ Advance(n, jour[n], c)
    /\ Say({})
    /\ UNCHANGED <<settled, lead, life>>

\* The next chosen value, told by a node that knows it. Promise and acceptance stay.
Learn(n) ==
    \E x \in told :
    LET i == x[1]
        v == x[2]
        j == IF Held(jour[n], i) = v THEN jour[n] ELSE [jour[n] EXCEPT !.cho[i] = v]
        broken == CASE Bug = "promise_forgotten_on_learning" -> [j EXCEPT !.prom = 0]
                    [] Bug = "learned_counts_as_accepted" ->
                            [j EXCEPT !.acc[i] = [b |-> j.prom, v |-> v]]
                    [] OTHER -> j IN
    /\ i = ct[n] + 1
    /\ lead[n].role # "lead" \/ Bug = "leader_learns"
    /\ Turn(n, broken, IF lead[n].role = "lead" THEN Watermark(lead[n].b, i) ELSE {}, {})
    /\ Advance(n, j, i)
    /\ UNCHANGED <<settled, lead, life>>

\* What is settled is in the store: replay passes over its records.
Settle(n) ==
    LET forget(j) == [j EXCEPT !.acc = [i \in Inst |-> IF i <= ct[n] THEN NoAcc ELSE @[i]],
                               !.cho = [i \in Inst |-> IF i <= ct[n] THEN NoVal ELSE @[i]]] IN
    /\ Settles
    /\ ct[n] > settled[n]
    /\ \A i \in settled[n] + 1 .. ct[n] : jour[n].acc[i] = dur[n].acc[i]
                                         /\ jour[n].cho[i] = dur[n].cho[i]
    /\ settled' = [settled EXCEPT ![n] = ct[n]]
    /\ jour' = [jour EXCEPT ![n] = forget(@)]
    /\ dur' = [dur EXCEPT ![n] = forget(@)]
    /\ UNCHANGED <<ct, lead, later, msgs, told, votes, life>>

\* A segment is given up: a chosen, unsettled entry is written again as chosen, without the ballot
\* in which it was accepted.
Carry(n) ==
    /\ Carries
    /\ \E i \in settled[n] + 1 .. ct[n] :
        /\ jour[n].acc[i] # NoAcc
        /\ Turn(n, [jour[n] EXCEPT !.acc[i] = NoAcc, !.cho[i] = Held(jour[n], i)], {}, {})
    /\ UNCHANGED <<settled, ct, lead, told, life>>

-----------------------------------------------------------------------------
StepDown(n) ==
    /\ n \in StepsDown
    /\ lead[n].role = "lead"
    /\ lead' = [lead EXCEPT ![n] = NoLead]
    /\ Say({})
    /\ UNCHANGED <<settled, ct, told, life>>

\* Crash, and restart by replay. Nothing is known chosen but what the store or a CHOSEN record
\* holds.
Crash(n) ==
    LET d == IF Bug = "promise_forgotten_on_restart"
             THEN [dur[n] EXCEPT !.prom = CHOOSE p \in 0 .. Len(Owner) :
                       /\ \A i \in Inst : p >= dur[n].acc[i].b
                       /\ p = 0 \/ \E i \in Inst : p = dur[n].acc[i].b]
             ELSE dur[n]
        to == Through(settled[n], MaxInst,
                      LAMBDA i : \/ d.cho[i] # NoVal
                                 \/ Bug = "restart_takes_accepted_for_chosen" /\ d.acc[i].b > 0) IN
    /\ Crashes < MaxCrash
    /\ jour' = [jour EXCEPT ![n] = d]
    /\ dur' = [dur EXCEPT ![n] = d]
    /\ later' = [later EXCEPT ![n] = {}]
    /\ lead' = [lead EXCEPT ![n] = NoLead]
    /\ ct' = [ct EXCEPT ![n] = to]
    /\ told' = told \union {<<i, Held(d, i)>> : i \in settled[n] + 1 .. to}
    /\ life' = [life EXCEPT ![n] = @ + 1]
    /\ UNCHANGED <<settled, msgs, votes>>

-----------------------------------------------------------------------------
(* Lost disks. Of a lost store nothing need be said but that a restart knows its index: the      *)
(* journal's SETTLED record says it, so a node with a new store is Crash. The broken variant     *)
(* forgets it.                                                                                   *)

LoseStore(n) ==
    /\ Bug = "settled_not_in_the_journal"
    /\ settled[n] > 0
    /\ Crashes < MaxCrash
    /\ settled' = [settled EXCEPT ![n] = 0]
    /\ ct' = [ct EXCEPT ![n] = 0]
    /\ jour' = [jour EXCEPT ![n] = dur[n]]
    /\ later' = [later EXCEPT ![n] = {}]
    /\ lead' = [lead EXCEPT ![n] = NoLead]
    /\ life' = [life EXCEPT ![n] = @ + 1]
    /\ UNCHANGED <<dur, msgs, told, votes>>

\* What may be left of a journal that was lost. No record is wrong, but any may be missing; an
\* acceptance says its ballot's promise, too.
Remains(n) ==
    IF ~Salvages THEN {[prom |-> 0, acc |-> [i \in Inst |-> NoAcc], cho |-> [i \in Inst |-> NoVal]]}
    ELSE {[prom |-> CHOOSE p \in 0 .. Len(Owner) :
                        /\ p \in {0, q} \union {dur[n].acc[i].b : i \in A}
                        /\ p >= q /\ \A i \in A : p >= dur[n].acc[i].b,
           acc |-> [i \in Inst |-> IF i \in A THEN dur[n].acc[i] ELSE NoAcc],
           cho |-> [i \in Inst |-> IF i \in C THEN dur[n].cho[i] ELSE NoVal]] :
              q \in {0, dur[n].prom}, A \in SUBSET Inst, C \in SUBSET Inst}

\* A crash that takes the journal with it. The store is whole: what is settled, and the ceiling.
\* The ceiling is at least every promise ever made; the least such one allows most.
LoseJournal(n) ==
    \E d \in Remains(n) :
    LET to == Through(settled[n], MaxInst, LAMBDA i : d.cho[i] # NoVal) IN
    /\ n \in Losers /\ loss[n].n < MaxLoss
    /\ Crashes < MaxCrash
    /\ jour' = [jour EXCEPT ![n] = d]
    /\ dur' = [dur EXCEPT ![n] = d]
    /\ later' = [later EXCEPT ![n] = {}]
    /\ lead' = [lead EXCEPT ![n] = NoLead]
    /\ ct' = [ct EXCEPT ![n] = to]
    /\ told' = told \union {<<i, Held(d, i)>> : i \in settled[n] + 1 .. to}
    /\ life' = [life EXCEPT ![n] = @ + 1]
    /\ loss' = [loss EXCEPT ![n] = [sus |-> TRUE, n |-> @.n + 1, at |-> to,
                                   top |-> IF Bug = "ceiling_of_the_first_loss" /\ @.n > 0 THEN @.top
                                           ELSE Max(@.top, jour[n].prom)]]
    /\ UNCHANGED <<settled, msgs, votes>>

\* It led once above its ceiling, and has accepted all that phase 1 found: whole again.
Rejoin(n) ==
    /\ loss[n].sus
    /\ jour[n] = dur[n]
    /\ lead[n].role = "lead"
    /\ lead[n].rec = NoEntries \/ Bug = "rejoin_before_it_accepts"
    /\ loss' = [loss EXCEPT ![n].sus = FALSE]
    /\ UNCHANGED <<jour, dur, settled, ct, lead, later, msgs, told, votes, life>>

\* What does not do: to read, at one moment, what the others have on disk; to have learned
\* something new (Paxos Made Live).
RejoinWrong(n) ==
    /\ loss[n].sus
    /\ \/ /\ Bug = "rejoin_by_reading"
          /\ \A o \in Nodes \ {n} : ct[o] <= ct[n] /\ ~loss[o].sus
          /\ LET best(i) == CHOOSE a \in {dur[o].acc[i] : o \in Nodes \ {n}} :
                             \A o \in Nodes \ {n} : a.b >= dur[o].acc[i].b
                 j == [jour[n] EXCEPT !.prom = Max(@, loss[n].top),
                                      !.acc = [i \in Inst |-> IF i > ct[n] THEN best(i) ELSE @[i]]] IN
             /\ \A i \in Inst : j.acc[i].b <= j.prom
             /\ jour' = [jour EXCEPT ![n] = j]
             /\ dur' = [dur EXCEPT ![n] = j]
       \/ /\ Bug = "votes_after_one_instance"
          /\ ct[n] > loss[n].at
          /\ UNCHANGED <<jour, dur>>
    /\ loss' = [loss EXCEPT ![n].sus = FALSE]
    /\ UNCHANGED <<settled, ct, lead, later, msgs, told, votes, life>>

Next ==
    \E n \in Nodes :
        \/ /\ \/ Prepare(n) \/ Promise(n) \/ Follow(n) \/ EndPhase1(n) \/ EndLearning(n)
              \/ Propose(n) \/ Accept(n) \/ CountChosen(n)
              \/ HearWatermark(n) \/ Learn(n) \/ Settle(n) \/ Carry(n)
              \/ Sync(n) \/ StepDown(n) \/ Crash(n) \/ LoseStore(n)
           /\ UNCHANGED loss
        \/ LoseJournal(n) \/ Rejoin(n) \/ RejoinWrong(n)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold. The names are those of docs/design/protocol.md.         *)

Majority == Cardinality(Nodes) \div 2 + 1

\* Chosen by the definition of Paxos: a majority durably accepted v at i in one ballot.
ChosenIn(b, i, v) == Cardinality({n \in Nodes : <<n, i, b, v>> \in votes}) >= Majority
Voted == {<<x[2], x[3], x[4]>> : x \in votes}
ChosenAt == {x \in Voted : ChosenIn(x[2], x[1], x[3])}
Chosen == {<<x[1], x[3]>> : x \in ChosenAt}

\* One value per instance: chosen, or taken for chosen by any node at any time.
U1_Agreement == \A x, y \in Chosen \union told : x[1] = y[1] => x[2] = y[2]

\* Everything that any node ever took for chosen is, and was proposed.
U2_ToldIsChosen == told \subseteq Chosen

\* Of what is chosen, every majority can still tell from its disks; a suspect node need not.
Holds(n, i, v) ==
    settled[n] >= i \/ dur[n].cho[i] = v \/ dur[n].acc[i].v = v
U3_Kept ==
    \A x \in Chosen :
        Cardinality({n \in Nodes : ~loss[n].sus /\ ~Holds(n, x[1], x[2])}) < Majority

\* Nobody has heard of a promise or acceptance above what is on disk, in journal or ceiling.
Bound(n) == Max(dur[n].prom, loss[n].top)
U4_Promises ==
    /\ \A m \in msgs :
        /\ m.t = "prepare" => Bound(Owner[m.b]) >= m.b
        /\ m.t \in {"promise", "accepted"} => Bound(m.n) >= m.b
    /\ \A n \in Nodes : \A i \in Inst :
        dur[n].prom >= dur[n].acc[i].b /\ jour[n].prom >= jour[n].acc[i].b

\* One value per ballot and instance.
Accepts == {m \in msgs : m.t = "accept"}
U6_OneValue ==
    /\ \A m, o \in Accepts : m.b = o.b /\ m.i = o.i => m.v = o.v
    /\ \A x, y \in Voted : x[1] = y[1] /\ x[2] = y[2] => x[3] = y[3]

\* Whatever is proposed above the ballot in which v was chosen, is v.
P2c == \A x \in ChosenAt : \A m \in Accepts : m.i = x[1] /\ m.b > x[2] => m.v = x[3]

\* Changes of state: chosen stays chosen; nothing durable goes back; in one life, neither does
\* what is known.
U3_Forward ==
    [][/\ votes' = votes \/ Chosen \subseteq Chosen'
       /\ \A n \in Nodes :
           /\ dur'[n].prom >= dur[n].prom \/ loss'[n].top >= dur[n].prom
           /\ ~loss'[n].sus => dur'[n].prom >= Bound(n)
           /\ settled'[n] >= settled[n]
           /\ ct'[n] >= settled[n]
           /\ life'[n] = life[n] => ct'[n] >= ct[n] /\ jour'[n].prom >= jour[n].prom]_vars

TypeOK ==
    /\ \A n \in Nodes :
        /\ settled[n] <= ct[n] /\ ct[n] <= MaxInst
        /\ later[n] = {} \/ jour[n] # dur[n]
        /\ lead[n].role \in {"follow", "prepare", "learn", "lead"}
        /\ lead[n].role # "follow" => lead[n].b = jour[n].prom /\ Owner[lead[n].b] = n
    /\ \A m \in msgs : m.t \in {"prepare", "promise", "accept", "accepted", "chosen"}
=============================================================================
