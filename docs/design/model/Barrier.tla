------------------------------ MODULE Barrier ------------------------------
(***************************************************************************)
(* The change of members by a value and a barrier: sections 2 and 3 of     *)
(* docs/design/membership.md. docs/design/model.md says what is left out.  *)
(*                                                                         *)
(* Disks are modelled in Phx.tla. Here what a node promises and accepts is *)
(* durable, but for a leader's own acceptance, which its next restart may  *)
(* take; that an instance is chosen is forgotten by a restart, unless it   *)
(* was learned (a record) or stands below what the members are of.         *)
(* Messages are never taken out of msgs.                                   *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets, Sequences

CONSTANTS
    Config,         \* <<members of version 0, of version 1, ...>>
    Owner,          \* <<node, ...>>: Owner[b] alone may lead in ballot b
    MaxInst,        \* instances 1 .. MaxInst
    Changers,       \* ballots whose leader may propose a membership value
    Hears,          \* Hears[b]: nodes that messages of phase 1 and 2 of b ever reach
    MaxRestart,     \* restarts in one behaviour
    Leavers,        \* nodes that may be told that they are removed
    Without,        \* rules on which safety is said not to depend, and which are left out
    Bug             \* "none", or the shortcut of section 4 that is taken

VARIABLES
    prom,           \* the promise of a node
    acc,            \* acc[n][i]: [b, v]; b = Top: learned as chosen
    ct,             \* chosen_through
    conf,           \* [ver, i, p]: RECORD_GROUP: version, the instance that made it, its floor
    lead,           \* the leadership, or NoLead
    msgs,           \* every message that ever left
    told,           \* <<instance, value, version whose members were counted, ballot>> of all
                    \* that a leader ever counted
    gone,           \* nodes that have nothing but a tombstone
    restarts

vars == <<prom, acc, ct, conf, lead, msgs, told, gone, restarts>>

Versions == 0 .. Len(Config) - 1
Members(v) == Config[v + 1]
Nodes == UNION {Members(v) : v \in Versions}
Ballots == 1 .. Len(Owner)
Top == Len(Owner) + 1
Inst == 1 .. MaxInst
Majority(v, s) == 2 * Cardinality(s \intersect Members(v)) > Cardinality(Members(v))
Max(a, b) == IF a > b THEN a ELSE b

\* Values: a fresh one, a no-op, and the members of version v, each with the ballot that packed it.
Fresh(b) == <<"x", b, 0>>
Noop(b) == <<"noop", b, 0>>
Change(b, v) == <<"m", b, v>>
IsChange(v) == v[1] = "m"
NoAcc == [b |-> 0, v |-> <<"", 0, 0>>]
NoAccs == [i \in Inst |-> NoAcc]
NoLead == [role |-> "follow", b |-> 0, ver |-> 0, first |-> 0, next |-> 0, maxc |-> 0,
           rec |-> NoAccs]
NoConf == [ver |-> 0, i |-> 0, p |-> 0]

Init ==
    /\ prom = [n \in Nodes |-> 0]
    /\ acc = [n \in Nodes |-> NoAccs]
    /\ ct = [n \in Nodes |-> 0]
    /\ conf = [n \in Nodes |-> NoConf]
    /\ lead = [n \in Nodes |-> NoLead]
    /\ msgs = {}
    /\ told = {}
    /\ gone = {}
    /\ restarts = 0

\* The largest k from c on such that ok(i) for all i in c + 1 .. k.
Through(c, ok(_)) ==
    IF c >= MaxInst THEN c
    ELSE CHOOSE k \in c .. MaxInst : /\ \A i \in c + 1 .. k : ok(i)
                                     /\ k = MaxInst \/ ~ok(k + 1)

-----------------------------------------------------------------------------
(* Whom a message of phase 1 or 2 concerns (M3, M4): a member of its       *)
(* version, of which it knows what made it. All others do nothing with it. *)

Concerns(n, m) ==
    /\ n \in Hears[m.b] /\ n \notin gone
    /\ \/ conf[n].ver = m.ver /\ n \in Members(m.ver)
       \/ Bug = "votes_before_it_knows" /\ conf[n].ver < m.ver /\ n \in Members(m.ver)
       \/ "refuse" \in Without /\ conf[n].ver > m.ver /\ n \in Members(m.ver)
       \/ Bug = "removed_vote_counted" /\ conf[n].ver = m.ver
       \/ /\ Bug = "configuration_effective_too_early"
          /\ conf[n].ver = m.ver /\ m.t = "accept" /\ IsChange(m.v) /\ n \in Members(m.v[3])

Count(v, s) == IF Bug = "removed_vote_counted"
               THEN 2 * Cardinality(s) > Cardinality(Members(v)) ELSE Majority(v, s)

-----------------------------------------------------------------------------
(* Phase 1                                                                 *)

\* That it is above P follows from the promise (Knows).
Prepare(n) ==
    \E b \in Ballots :
    /\ Owner[b] = n /\ n \in Members(conf[n].ver)
    /\ b > prom[n]
    /\ prom' = [prom EXCEPT ![n] = b]
    /\ lead' = [lead EXCEPT ![n] = [NoLead EXCEPT !.role = "prepare", !.b = b,
                                    !.ver = conf[n].ver, !.first = ct[n] + 1,
                                    !.next = ct[n] + 1]]
    /\ msgs' = msgs \union {[t |-> "prepare", b |-> b, ver |-> conf[n].ver, first |-> ct[n] + 1]}
    /\ UNCHANGED <<acc, ct, conf, told, gone, restarts>>

Promise(n) ==
    \E m \in msgs :
    /\ m.t = "prepare" /\ n # Owner[m.b] /\ Concerns(n, m)
    /\ m.b > prom[n]
    /\ prom' = [prom EXCEPT ![n] = m.b]
    /\ lead' = [lead EXCEPT ![n] = NoLead]
    /\ msgs' = msgs \union
           {[t |-> "promise", n |-> n, b |-> m.b, ver |-> m.ver, ct |-> ct[n],
             rep |-> [i \in Inst |-> IF i < Max(m.first, ct[n] + 1) THEN NoAcc ELSE acc[n][i]]]}
    /\ UNCHANGED <<acc, ct, conf, told, gone, restarts>>

Highest(entries) == CHOOSE e \in entries : \A f \in entries : e.b >= f.b

\* M2: what was told above a membership value is dropped.
Dropped(rec) ==
    IF Bug = "adopted_membership_goes_on" THEN rec
    ELSE [i \in Inst |-> IF \E k \in 1 .. i - 1 : rec[k].b > 0 /\ IsChange(rec[k].v)
                         THEN NoAcc ELSE rec[i]]

Leading(n, ld) ==
    [ld EXCEPT !.role = "lead", !.next = ct[n] + 1, !.maxc = 0,
               !.rec = Dropped([i \in Inst |-> IF i <= ct[n] THEN NoAcc
                                               ELSE Highest({ld.rec[i], acc[n][i]})])]

EndPhase1(n) ==
    LET ld == lead[n]
        all == {m \in msgs : m.t = "promise" /\ m.b = ld.b /\ m.ver = ld.ver} IN
    /\ ld.role = "prepare"
    /\ \E s \in SUBSET all :
       LET got == [ld EXCEPT !.rec = [i \in Inst |-> Highest({NoAcc} \union {m.rep[i] : m \in s})]]
           maxc == CHOOSE c \in {0} \union {m.ct : m \in s} : \A m \in s : c >= m.ct IN
       /\ Count(ld.ver, {m.n : m \in s} \union {n})
       /\ \A m \in s : ~Count(ld.ver, {x.n : x \in s \ {m}} \union {n})
       /\ lead' = [lead EXCEPT ![n] = IF maxc > ct[n]
                                      THEN [got EXCEPT !.role = "learn", !.maxc = maxc]
                                      ELSE Leading(n, got)]
    /\ UNCHANGED <<prom, acc, ct, conf, msgs, told, gone, restarts>>

EndLearning(n) ==
    /\ lead[n].role = "learn" /\ ct[n] >= lead[n].maxc
    /\ lead' = [lead EXCEPT ![n] = Leading(n, @)]
    /\ UNCHANGED <<prom, acc, ct, conf, msgs, told, gone, restarts>>

-----------------------------------------------------------------------------
(* Phase 2                                                                 *)

\* M1, M2: nothing goes above a membership value that this ballot has proposed.
Closed(n) ==
    /\ \E m \in msgs : /\ m.t = "accept" /\ m.b = lead[n].b /\ IsChange(m.v) /\ m.i > ct[n]
                     /\ \/ Bug \notin {"adopted_membership_goes_on", "values_above_the_change"}
                        \/ Bug = "adopted_membership_goes_on" /\ m.v[2] = m.b

Propose(n) ==
    LET ld == lead[n]
        i == Max(ld.next, ct[n] + 1)
        found == {k \in Inst : k >= i /\ ld.rec[k].b > 0}
        \* M1: every instance below is chosen, and nothing was told of above.
        quiet == i = ct[n] + 1 /\ found = {}
        free == \/ Bug = "membership_over_open_instances" \/ "M1" \in Without
        change == IF /\ ld.b \in Changers /\ ld.ver + 1 \in Versions
                     /\ quiet \/ free
                     /\ ~\E m \in msgs : m.t = "accept" /\ m.b = ld.b /\ IsChange(m.v)
                  THEN {Change(ld.b, ld.ver + 1)} ELSE {}
        again == Bug = "membership_over_open_instances" /\ found # {} IN
    /\ ld.role = "lead" /\ i <= MaxInst
    /\ ~Closed(n) \/ again
    /\ \E v \in IF i \in found THEN {ld.rec[i].v}
                ELSE IF found # {} THEN {Noop(ld.b)} \union change
                ELSE {Fresh(ld.b)} \union change :
       /\ msgs' = msgs \union {[t |-> "accept", b |-> ld.b, ver |-> ld.ver, first |-> ld.first,
                                i |-> i, v |-> v]}
       /\ \/ acc' = [acc EXCEPT ![n][i] = [b |-> ld.b, v |-> v]]
          \/ restarts < MaxRestart /\ UNCHANGED acc  \* its next restart takes it
    /\ lead' = [lead EXCEPT ![n].next = i + 1]
    /\ UNCHANGED <<prom, ct, conf, told, gone, restarts>>

\* Cumulative: everything from first to u is accepted in exactly b, or known chosen.
AckThrough(n, m, row) == Through(Max(m.first - 1, ct[n]), LAMBDA i : row[i].b \in {m.b, Top})

Accept(n) ==
    \E m \in msgs :
    /\ m.t = "accept" /\ n # Owner[m.b] /\ Concerns(n, m)
    /\ m.b >= prom[n]
    /\ prom' = [prom EXCEPT ![n] = m.b]
    /\ lead' = [lead EXCEPT ![n] = IF m.b > prom[n] THEN NoLead ELSE @]
    /\ LET take == m.i > ct[n] /\ acc[n][m.i].b \notin {m.b, Top}
           row == IF take THEN [acc[n] EXCEPT ![m.i] = [b |-> m.b, v |-> m.v]] ELSE acc[n]
           u == AckThrough(n, m, row) IN
       /\ acc' = [acc EXCEPT ![n] = row]
       /\ msgs' = msgs \union {[t |-> "accepted", n |-> n, b |-> m.b, ver |-> m.ver, u |-> u]}
    /\ UNCHANGED <<ct, conf, told, gone, restarts>>

\* Instances up to c are known to be chosen, the last of them as v, counted in b. Who knows a
\* membership value to be chosen is of its version, holds nothing above it, and has promised b;
\* durably, for it writes the record before it votes above, and before that nobody can tell.
Knows(n, c, v, b, row) ==
    LET zero == Bug = "promise_of_the_new_from_zero"
        floor == IF Bug = "floor_of_the_packer" THEN v[2] ELSE b IN
    /\ ct' = [ct EXCEPT ![n] = c]
    /\ IF IsChange(v) /\ v[3] > conf[n].ver /\ Bug # "install_keeps_members"
       THEN /\ conf' = [conf EXCEPT ![n] = [ver |-> v[3], i |-> c, p |-> floor]]
            /\ acc' = [acc EXCEPT ![n] =
                           [i \in Inst |-> IF i > c /\ "drop" \notin Without /\ ~zero THEN NoAcc
                                           ELSE row[i]]]
            /\ prom' = [prom EXCEPT ![n] = IF "floor" \in Without \/ zero THEN 0
                                           ELSE Max(@, floor)]
            /\ lead' = [lead EXCEPT ![n] = NoLead]
       ELSE /\ acc' = [acc EXCEPT ![n] = row]
            /\ UNCHANGED <<conf, prom, lead>>

\* The quorum of an instance is one of the members of its version; all up to c in one step.
CountChosen(n) ==
    LET ld == lead[n]
        acks == {m \in msgs : m.t = "accepted" /\ m.b = ld.b /\ m.ver = ld.ver}
        mine == Through(ct[n], LAMBDA i : acc[n][i].b = ld.b)
        said(k) == CHOOSE v \in {m.v : m \in {x \in msgs : x.t = "accept" /\ x.b = ld.b
                                                          /\ x.ver = ld.ver /\ x.i = k}} : TRUE IN
    /\ ld.role = "lead"
    /\ \E c \in {k \in ct[n] + 1 .. ld.next - 1 : k <= MaxInst} :
       LET who == {m.n : m \in {a \in acks : a.u >= c}} \union (IF mine >= c THEN {n} ELSE {})
           early == Bug = "configuration_effective_too_early" /\ IsChange(said(c))
           ends == {k \in ct[n] + 1 .. c : IsChange(said(k))}
           row == [i \in Inst |-> IF i \in ct[n] + 1 .. c THEN [b |-> ld.b, v |-> said(i)]
                                  ELSE acc[n][i]] IN
       /\ Count(IF early THEN said(c)[3] ELSE ld.ver, who)
       /\ ends \subseteq {c} \/ Bug \in {"adopted_membership_goes_on", "values_above_the_change",
                                        "membership_over_open_instances"}
       /\ told' = told \union {<<k, said(k), ld.ver, ld.b>> : k \in ct[n] + 1 .. c}
       /\ \/ /\ Bug = "old_quorum_after_the_barrier" /\ ends # {}
             /\ ct' = [ct EXCEPT ![n] = c]
             /\ UNCHANGED <<prom, acc, conf, lead, restarts>>
          \/ /\ Bug # "old_quorum_after_the_barrier" \/ ends = {}
             /\ Knows(n, c, said(c), ld.b, row)
             /\ UNCHANGED restarts
          \/ \* It tells, and dies before its own records are durable.
             /\ restarts < MaxRestart
             /\ restarts' = restarts + 1
             /\ ct' = [ct EXCEPT ![n] = Through(conf[n].i, LAMBDA i : acc[n][i].b = Top)]
             /\ lead' = [lead EXCEPT ![n] = NoLead]
             /\ UNCHANGED <<prom, acc, conf>>
    /\ UNCHANGED <<msgs, gone>>

-----------------------------------------------------------------------------
(* Learning, restarts, removal                                             *)

\* The next decided value, by a watermark, a Learn, a CONFIG or a checkpoint.
Learn(n) ==
    \E t \in told :
    /\ t[1] = ct[n] + 1 /\ lead[n].role # "lead"
    /\ Knows(n, t[1], t[2], t[4], IF acc[n][t[1]].v = t[2] THEN acc[n]
                            ELSE [acc[n] EXCEPT ![t[1]] = [b |-> Top, v |-> t[2]]])
    /\ UNCHANGED <<msgs, told, gone, restarts>>

\* A leader of old members is refused by whoever knows better, and told (REFUSE_CONFIG).
Refused(n) ==
    /\ lead[n].role = "lead"
    /\ \E t \in told : IsChange(t[2]) /\ t[2][3] > lead[n].ver
    /\ lead' = [lead EXCEPT ![n] = NoLead]
    /\ UNCHANGED <<prom, acc, ct, conf, msgs, told, gone, restarts>>

Restart(n) ==
    /\ restarts < MaxRestart
    /\ restarts' = restarts + 1
    /\ ct' = [ct EXCEPT ![n] = Through(conf[n].i, LAMBDA i : acc[n][i].b = Top)]
    /\ lead' = [lead EXCEPT ![n] = NoLead]
    /\ conf' = [conf EXCEPT ![n] = IF Bug = "members_of_the_file" THEN [@ EXCEPT !.ver = 0] ELSE @]
    /\ UNCHANGED <<prom, acc, msgs, told, gone>>

\* M6: a value of version v is chosen, so a quorum of v holds all below durably.
Active(v) == v = 0 \/ \E t \in told : t[3] = v
Ready(v) == \/ Active(v)
            \/ /\ Bug = "returned_before_active"
               /\ \E t \in told : IsChange(t[2]) /\ t[2][3] = v

\* A removed member forgets everything but that it was removed.
Remove(n) ==
    /\ n \in Leavers
    /\ \E v, u \in Versions : u < v /\ Ready(v) /\ n \in Members(u) \ Members(v)
    /\ gone' = gone \union {n}
    /\ prom' = [prom EXCEPT ![n] = 0]
    /\ acc' = [acc EXCEPT ![n] = NoAccs]
    /\ ct' = [ct EXCEPT ![n] = 0]
    /\ conf' = [conf EXCEPT ![n] = NoConf]
    /\ lead' = [lead EXCEPT ![n] = NoLead]
    /\ UNCHANGED <<msgs, told, restarts>>

\* The id is given to a node with an empty disk and the old configuration file.
Return(n) ==
    /\ Bug = "id_used_again"
    /\ n \in gone
    /\ gone' = gone \ {n}
    /\ UNCHANGED <<prom, acc, ct, conf, lead, msgs, told, restarts>>

\* The wrong measure of the remark after the theorem: j is called decided in c without what c
\* proposed below it.
DecideAlone(n) ==
    /\ Bug = "decided_alone"
    /\ \E m \in msgs :
       /\ m.t = "accept"
       /\ Majority(m.ver, {o \in Nodes : acc[o][m.i].b = m.b})
       /\ <<m.i, m.v, m.ver, m.b>> \notin told
       /\ told' = told \union {<<m.i, m.v, m.ver, m.b>>}
    /\ UNCHANGED <<prom, acc, ct, conf, lead, msgs, gone, restarts>>

Next == \E n \in Nodes :
    \/ /\ n \notin gone
       /\ \/ Prepare(n) \/ Promise(n) \/ EndPhase1(n) \/ EndLearning(n)
          \/ Propose(n) \/ Accept(n) \/ CountChosen(n) \/ Learn(n) \/ Refused(n) \/ Restart(n)
          \/ Remove(n)
    \/ Return(n) \/ DecideAlone(n)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What of a state makes a difference to what follows, and is all that TLC *)
(* compares: an answer that nobody will read any more does not, nor a      *)
(* Prepare that nobody can promise.                                        *)

Read(b, roles) == lead[Owner[b]].b = b /\ lead[Owner[b]].role \in roles

Matters(m) ==
    CASE m.t = "prepare" -> \E n \in Hears[m.b] \ {Owner[m.b]} : prom[n] < m.b
      [] m.t = "promise" -> Read(m.b, {"prepare"})
      [] m.t = "accept" -> TRUE
      [] m.t = "accepted" -> /\ Read(m.b, {"lead"}) /\ m.u > ct[Owner[m.b]]
                             /\ ~\E x \in msgs : x.t = "accepted" /\ x.n = m.n /\ x.b = m.b
                                               /\ x.ver = m.ver /\ x.u > m.u
Seen == <<prom, acc, ct, conf, lead, {m \in msgs : Matters(m)}, told, gone, restarts>>

-----------------------------------------------------------------------------
(* What must hold.                                                         *)

U1_Agreement == \A s, t \in told : s[1] = t[1] => s[2] = t[2]

\* Every instance is decided by the members of its version, which is the number of changes below.
U10_Members ==
    \A t \in told : t[3] = Cardinality({s[1] : s \in {x \in told : IsChange(x[2]) /\ x[1] < t[1]}})

\* Of everything decided, each majority of the newest active members can still tell, or each of
\* the members who come next (when those before have been switched off).
Holds(n, t) == n \notin gone /\ (t[1] <= conf[n].i \/ acc[n][t[1]].v = t[2])
Newest == CHOOSE v \in Versions : Active(v) /\ \A u \in Versions : Active(u) => u <= v
U3_Kept ==
    \A t \in told : \E v \in {Newest, Newest + 1} \intersect Versions :
        ~Majority(v, {n \in Members(v) : ~Holds(n, t)})

\* A quorum read at a: what a majority of the members that a knows has accepted, or a knows, covers
\* all that is known to be chosen anywhere, or reaches what ended their version: then a asks again,
\* the next members.
Reach(n) == CHOOSE i \in 0 .. MaxInst : /\ i = ct[n] \/ (i > ct[n] /\ acc[n][i].b > 0)
                                        /\ \A k \in i + 1 .. MaxInst : acc[n][k].b = 0
U14_QuorumRead ==
    \A a \in Nodes \ gone : \A s \in SUBSET (Members(conf[a].ver) \ gone) :
        LET reaches(i) == ct[a] >= i \/ \E n \in s : Reach(n) >= i IN
        Majority(conf[a].ver, s) =>
            \/ \A t \in told : reaches(t[1])
            \/ /\ Bug # "quorum_read_of_old_members"
               /\ \E t \in told : IsChange(t[2]) /\ t[2][3] = conf[a].ver + 1 /\ reaches(t[1])

\* One value per version, ballot and instance.
Accepts == {m \in msgs : m.t = "accept"}
U6_OneValue == \A m, o \in Accepts : m.b = o.b /\ m.i = o.i /\ m.ver = o.ver => m.v = o.v

\* Ballots are epochs: whoever led before, and packed anything, did so in a lower one.
Epochs_Grow ==
    "floor" \in Without \/ \A m, o \in Accepts : m.ver < o.ver /\ m.v[2] = m.b => m.b < o.b

TypeOK ==
    \A n \in Nodes :
        /\ ct[n] \in 0 .. MaxInst /\ conf[n].i <= ct[n]
        /\ \A i \in Inst : acc[n][i].b # Top /\ "floor" \notin Without => acc[n][i].b <= prom[n]
        /\ prom[n] >= conf[n].p \/ "floor" \in Without
        /\ lead[n].role # "follow" => lead[n].b = prom[n] /\ Owner[lead[n].b] = n
                                      /\ lead[n].ver = conf[n].ver
        /\ n \in gone => lead[n] = NoLead /\ prom[n] = 0
=============================================================================
