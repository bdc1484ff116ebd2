----------------------------- MODULE MCBarrier -----------------------------
(* The finite instances of Barrier that TLC checks, and what they must reach. *)
EXTENDS Barrier, TLC

CONSTANTS n1, n2, n3, n4, n5

Owners12 == <<n1, n2>>
Owners11 == <<n1, n1>>
Owners121 == <<n1, n2, n1>>
Owners112 == <<n1, n1, n2>>
Owners123 == <<n1, n2, n3>>
Owners124 == <<n1, n2, n4>>
Owners132 == <<n1, n3, n2>>
Owners12145 == <<n1, n2, n1, n4, n5>>
Owners1421 == <<n1, n4, n2, n1>>
Owners45121 == <<n4, n5, n1, n2, n1>>

ConfFirst == <<{n1, n2, n3}, {n1}>>
ConfOne == <<{n1, n2, n3}, {n2}>>
ConfOneThree == <<{n1}, {n2, n3, n4}>>
ConfJoint == <<{n1, n2, n3}, {n3, n4, n5}>>
ConfDisjoint == <<{n1, n2, n3}, {n4, n5}>>
ConfTwice == <<{n1}, {n2}, {n3}>>

HearAll == [b \in Ballots |-> Nodes]
\* n1 and n2 lead in turns, and hear each other only through n3.
HearTurns == <<{}, {n3}, {n3}>>
\* n3 asks n1 when n2 has spoken with n3.
HearOpen == <<{}, {n3}, {n1}>>
HearThird == <<{n3}, {n3}>>
\* The first leader reaches n3, who then stays with the old members; the new leader is alone.
HearOld == <<{n3}, {}>>
HearBack == <<{n3}, {}, {n3}>>
\* A leader of three new members reaches n3, and so does the next one.
HearThree == <<{}, {n3}, {n3}>>
\* A leader of new members reaches n1, who is none; the next one reaches another new member.
HearRemoved == <<{}, {n1}, {n4}>>
HearDisjoint == <<{n1, n2}, {n2, n3}, {n4, n5}>>
HearJoint == <<{n1, n2, n3}, {n3, n4, n5}, {n2, n1}>>
HearNew == <<{n5}, {n3}, {}, {}, {}>>
HearLow == <<{}, {n5}, {}, {}>>
HearLast == <<{}, {}, {}, {n3, n5}, {n3, n4}>>

\* A reachable beginning: n1 leads in ballot 1, which all members have promised; nothing is
\* proposed.
InitLed ==
    /\ prom = [n \in Nodes |-> IF n \in Members(0) THEN 1 ELSE 0]
    /\ acc = [n \in Nodes |-> NoAccs]
    /\ ct = [n \in Nodes |-> 0]
    /\ conf = [n \in Nodes |-> NoConf]
    /\ lead = [n \in Nodes |-> IF n = n1 THEN [NoLead EXCEPT !.role = "lead", !.b = 1,
                                                !.first = 1, !.next = 1]
                               ELSE NoLead]
    /\ msgs = {} /\ told = {} /\ gone = {} /\ restarts = 0
SpecLed == InitLed /\ [][Next]_vars

\* Another one: n1 has proposed at two instances, and nobody else heard of it; n2 leads in ballot
\* 2 with the promise of n3.
InitOpen ==
    LET said(i) == [t |-> "accept", b |-> 1, ver |-> 0, first |-> 1, i |-> i, v |-> Fresh(1)]
        row == [i \in Inst |-> [b |-> 1, v |-> Fresh(1)]] IN
    /\ prom = [n \in Nodes |-> IF n = n1 THEN 1 ELSE 2]
    /\ acc = [n \in Nodes |-> IF n = n1 THEN row ELSE NoAccs]
    /\ ct = [n \in Nodes |-> 0]
    /\ conf = [n \in Nodes |-> NoConf]
    /\ lead = [n \in Nodes |->
          CASE n = n1 -> [NoLead EXCEPT !.role = "lead", !.b = 1, !.first = 1, !.next = 3]
            [] n = n2 -> [NoLead EXCEPT !.role = "lead", !.b = 2, !.first = 1, !.next = 1]
            [] OTHER -> NoLead]
    /\ msgs = {said(i) : i \in Inst} /\ told = {} /\ gone = {} /\ restarts = 0
SpecOpen == InitOpen /\ [][Next]_vars

\* Another one: n1 proposed a membership value at 1 in its first ballot, p; n2, in ballot q, did not
\* hear of it and proposed at 1 and 2, of which n3 accepted 2; then n1, in its last ballot, r,
\* adopted the membership value and had it chosen with n3, who has not heard that it is chosen.
InitBoth ==
    LET p == CHOOSE b \in Ballots : Owner[b] = n1 /\ \A c \in 1 .. b - 1 : Owner[c] # n1
        q == CHOOSE b \in Ballots : Owner[b] = n2
        r == CHOOSE b \in Ballots : Owner[b] = n1 /\ \A c \in b + 1 .. Len(Owner) : Owner[c] # n1
        m == Change(p, 1)
        x == Fresh(q)
        said(b, i, v) == [t |-> "accept", b |-> b, ver |-> 0, first |-> 1, i |-> i, v |-> v]
        row(b, v, c, w) == [i \in Inst |-> IF i = 1 THEN [b |-> b, v |-> v]
                                           ELSE [b |-> c, v |-> w]] IN
    /\ prom = [n \in Nodes |-> CASE n = n2 -> q [] n \in {n1, n3} -> r [] OTHER -> 0]
    /\ acc = [n \in Nodes |-> CASE n = n1 -> row(r, m, 0, NoAcc.v)
                                [] n = n2 -> row(q, x, q, x)
                                [] n = n3 -> row(r, m, q, x)
                                [] OTHER -> NoAccs]
    /\ ct = [n \in Nodes |-> IF n = n1 THEN 1 ELSE 0]
    /\ conf = [n \in Nodes |-> IF n = n1 THEN [ver |-> 1, i |-> 1, p |-> r] ELSE NoConf]
    /\ lead = [n \in Nodes |-> NoLead]
    /\ msgs = {said(p, 1, m), said(q, 1, x), said(q, 2, x), said(r, 1, m)}
    /\ told = {<<1, m, 0, r>>} /\ gone = {} /\ restarts = 0
SpecBoth == InitBoth /\ [][Next]_vars

-----------------------------------------------------------------------------
(* Interesting situations; see MC.tla.                                     *)

Note(k, name, seen) ==
    IF TLCGet(k) THEN TRUE
    ELSE IF seen THEN TLCSet(k, TRUE) /\ PrintT(<<"reached", name>>)
    ELSE TRUE

ASSUME \A k \in 1 .. 30 : TLCSet(k, FALSE)

Watch ==
    LET new == msgs' \ msgs
        proposals == {m \in new : m.t = "accept"}
        decided == told' \ told
        changes == {t \in told' : IsChange(t[2])} IN
    /\ Note(1, "a leader adopts a membership value",
            \E m \in proposals : IsChange(m.v) /\ m.v[2] < m.b)
    /\ Note(2, "an adopter of a membership value drops what it was told above it",
            \E n \in Nodes : /\ lead'[n].role = "lead" /\ lead[n].role = "prepare"
                             /\ \E i, k \in Inst : i < k /\ IsChange(lead'[n].rec[i].v)
                                /\ \E m \in msgs : m.t = "promise" /\ m.b = lead[n].b
                                                  /\ m.rep[k].b > 0)
    /\ Note(3, "a membership value is proposed, and something else is chosen there",
            \E t \in decided : ~IsChange(t[2])
                /\ \E m \in msgs : m.t = "accept" /\ m.i = t[1] /\ IsChange(m.v))
    /\ Note(4, "a membership value is chosen in a ballot above that which packed it",
            \E m \in msgs : /\ m.t = "accept" /\ IsChange(m.v) /\ m.v[2] < m.b
                            /\ <<m.i, m.v, m.ver, m.b>> \in decided)
    /\ Note(5, "the new members choose something above the barrier",
            \E t \in decided : t[3] > 0)
    /\ Note(6, "a member of both drops an acceptance above the barrier",
            \E n \in Nodes : conf'[n].ver > conf[n].ver
                             /\ \E i \in Inst : i > conf'[n].i /\ acc[n][i].b > 0)
    /\ Note(7, "old and new members have a leader at once",
            \E n, o \in Nodes : /\ lead'[n].role = "lead" /\ lead'[o].role = "lead"
                                /\ lead'[n].ver < lead'[o].ver)
    /\ Note(8, "old members elect a leader after the new ones have chosen something",
            \E n \in Nodes : /\ lead'[n].role = "lead" /\ lead[n].role # "lead"
                             /\ \E t \in told : t[3] > lead'[n].ver)
    /\ Note(9, "a removed member forgets what it accepted",
            \E n \in gone' \ gone : acc[n] # NoAccs)
    /\ Note(10, "a removed member forgets before it heard that it is removed",
            \E n \in gone' \ gone : conf[n].ver = 0)
    /\ Note(11, "a leader counts a membership value and dies before it has recorded it",
            restarts' > restarts /\ \E t \in decided : IsChange(t[2]))
    /\ Note(12, "a leader dies with a membership value that nobody has accepted",
            restarts' > restarts /\ \E n \in Nodes : lead[n].role = "lead" /\ lead'[n] = NoLead
                /\ \E m \in msgs : /\ m.t = "accept" /\ m.b = lead[n].b /\ IsChange(m.v)
                                    /\ \A o \in Nodes : acc[o][m.i].b = 0)
    /\ Note(13, "a node restarts and knows its version",
            restarts' > restarts /\ \E n \in Nodes : ct'[n] # ct[n] /\ conf'[n].ver > 0)
    /\ Note(14, "a node restarts, and a membership value is merely accepted there again",
            restarts' > restarts /\ told' = told
            /\ \E n \in Nodes : ct'[n] < ct[n] /\ \E i \in Inst : IsChange(acc[n][i].v)
                                                                  /\ i > ct'[n])
    /\ Note(16, "a second change is chosen",
            \E t \in decided : IsChange(t[2]) /\ t[3] > 0)
    /\ Note(17, "a change is proposed before the last one is active",
            \E m \in proposals : IsChange(m.v) /\ m.ver > 0 /\ ~Active(m.ver))
    /\ Note(18, "a member of both accepts what its acceptance of before contradicts",
            \E n \in Nodes : \E i \in Inst : /\ conf[n].ver > 0 /\ i > conf[n].i
                                             /\ acc'[n][i].b > 0 /\ acc[n][i].b = 0
                                             /\ \E m \in msgs : m.t = "accept" /\ m.i = i
                                                               /\ m.ver < conf[n].ver)
=============================================================================
