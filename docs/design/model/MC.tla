-------------------------------- MODULE MC ---------------------------------
(* The finite instances of Phx that TLC checks, and what they must reach.  *)
EXTENDS Phx, TLC

CONSTANTS n1, n2, n3, n4, n5

OwnersA == <<n1>>
OwnersAB == <<n1, n2>>
OwnersABC == <<n1, n2, n3>>
OwnersAC == <<n1, n3>>
OwnersB == <<n2>>
OwnersABA == <<n1, n2, n1>>
Owners14 == <<n1, n4>>
Owners15 == <<n1, n5>>
Owners1234 == <<n1, n2, n3, n4>>
OwnersBB == <<n2, n2>>
Owners145 == <<n1, n4, n5>>

HearAll == [b \in Ballots |-> Nodes]
\* Two leaders that hear each other only through n3.
HearThird == <<{n1, n3}, {n2, n3}>>
\* The second of two leaders hears n3 only.
HearLast == <<Nodes, {n2, n3}>>
\* After n2 and n3 have chosen, n1 comes back and asks n3.
HearTurns == <<{n1}, {n2, n3}, {n1, n3}>>
\* Two leaders with a majority each, n2 in both.
HearTwo == <<{n1, n2, n3}, {n4, n2, n5}>>
\* A rejoin of n1 that n5 does not hear of; n5 has n1's promise from before, and n4's after.
HearCeiling == <<{n1, n2, n3, n4}, {n5, n1, n4, n2}>>
\* Two leaders that reach n2 only, and one another's rejoin.
HearSecond == <<{n2}, {n2}>>
HearRejoin == <<{n2}, {n1, n3}, {n2}>>
\* n1 leads with n2 and n3; then each of n2 and n3 asks all others; then n4 asks n2 and n3.
HearLosers == <<{n1, n2, n3}, Nodes, Nodes, {n2, n3, n4}>>
\* Who is reached by whom in the run of protocol.md, "Watermarks".
HearWatermarkRun == <<{n1, n2, n3}, {n4, n2, n5}, {n5, n2, n3}>>

\* A reachable beginning: n1 leads in ballot 1, everybody has promised it, nothing is proposed.
InitLed ==
    /\ jour = [n \in Nodes |-> [prom |-> 1, acc |-> [i \in Inst |-> NoAcc],
                                cho |-> [i \in Inst |-> NoVal]]]
    /\ dur = jour
    /\ settled = [n \in Nodes |-> 0]
    /\ ct = [n \in Nodes |-> 0]
    /\ lead = [n \in Nodes |-> IF n = n1 THEN [NoLead EXCEPT !.role = "lead", !.b = 1,
                                                !.first = 1, !.next = 1]
                               ELSE NoLead]
    /\ later = [n \in Nodes |-> {}]
    /\ msgs = {} /\ told = {} /\ votes = {}
    /\ life = [n \in Nodes |-> 0]
    /\ loss = [n \in Nodes |-> NoLoss]
SpecLed == InitLed /\ [][Next]_vars

\* Another one: n1 has accepted its own proposals of ballot 1 at all instances, alone; n2, in
\* ballot 2, has had others chosen there, and n3 knows that.
InitChosen ==
    LET old == [i \in Inst |-> [b |-> 1, v |-> <<1, 0>>]]
        new == [i \in Inst |-> [b |-> 2, v |-> <<2, 0>>]]
        proposal(b, i) == [t |-> "accept", b |-> b, first |-> 1, i |-> i, v |-> <<b, 0>>] IN
    /\ jour = [n \in Nodes |-> [prom |-> IF n = n1 THEN 1 ELSE 2,
                                acc |-> IF n = n1 THEN old ELSE new,
                                cho |-> [i \in Inst |-> NoVal]]]
    /\ dur = jour
    /\ settled = [n \in Nodes |-> 0]
    /\ ct = [n \in Nodes |-> IF n = n1 THEN 0 ELSE MaxInst]
    /\ lead = [n \in Nodes |-> IF n = n2 THEN [NoLead EXCEPT !.role = "lead", !.b = 2,
                                                !.first = 1, !.next = MaxInst + 1]
                               ELSE NoLead]
    /\ later = [n \in Nodes |-> {}]
    /\ msgs = {proposal(b, i) : b \in {1, 2}, i \in Inst} \union Watermark(2, MaxInst)
    /\ told = {<<i, <<2, 0>>>> : i \in Inst}
    /\ votes = UNION {VotesOf(n, dur[n]) : n \in Nodes}
    /\ life = [n \in Nodes |-> 0]
    /\ loss = [n \in Nodes |-> NoLoss]
SpecChosen == InitChosen /\ [][Next]_vars

-----------------------------------------------------------------------------
(* Interesting situations. Watch is an action constraint that is always    *)
(* true; it prints the name of each the first time that it occurs, and     *)
(* check.py demands the whole list.                                        *)

Note(k, name, seen) ==
    IF TLCGet(k) THEN TRUE
    ELSE IF seen THEN TLCSet(k, TRUE) /\ PrintT(<<"reached", name>>)
    ELSE TRUE

ASSUME \A k \in 1 .. 30 : TLCSet(k, FALSE)

Watch ==
    LET new == msgs' \ msgs
        proposals == {m \in new : m.t = "accept"} IN
    /\ Note(1, "a leader adopts a value of an older ballot",
            \E m \in proposals : m.v[1] < m.b)
    /\ Note(2, "a leader fills a gap below an adopted value with a no-op",
            \E m \in proposals : IsNoop(m.v) /\ m.v[1] = m.b)
    /\ Note(3, "a leader must learn before it may propose",
            \E n \in Nodes : lead'[n].role = "learn")
    /\ Note(4, "a leader proposes after it had to learn",
            \E n \in Nodes : lead[n].role = "lead" /\ lead[n].maxc > 0
                             /\ lead'[n].next > lead[n].next)
    /\ Note(5, "two nodes lead at once",
            \E n, o \in Nodes : n # o /\ lead'[n].role = "lead" /\ lead'[o].role = "lead")
    /\ Note(6, "a leader runs phase 1 again",
            \E n \in Nodes : lead[n].role = "lead" /\ lead'[n].role = "prepare")
    /\ Note(7, "an acceptor has a hole",
            \E n \in Nodes : \E i \in Inst : ct'[n] < i /\ jour'[n].acc[i].b = 0
                             /\ \E k \in Inst : k > i /\ jour'[n].acc[k].b > 0)
    /\ Note(8, "an entry is elided from a Promise",
            \E m \in new : m.t = "promise" /\ \E i \in Inst : m.rep[i][3] = "elided")
    /\ Note(9, "a Promise reports an entry marked chosen",
            \E m \in new : m.t = "promise" /\ \E i \in Inst : m.rep[i][3] = "cho")
    /\ Note(10, "a watermark makes an instance chosen",
            \E n \in Nodes : ct'[n] > ct[n] /\ lead[n].role # "lead"
                             /\ told' = told /\ jour' = jour /\ life' = life)
    /\ Note(11, "a watermark meets an entry of another ballot",
            \E n \in Nodes : \E m \in msgs' : m.t = "chosen" /\ m.c = ct'[n] + 1
                             /\ jour'[n].acc[m.c].b \notin {0, m.b})
    /\ Note(12, "a learned value replaces an accepted one",
            \E n \in Nodes : \E i \in Inst : jour'[n].cho[i] # jour[n].cho[i]
                             /\ jour[n].acc[i].b > 0 /\ jour'[n].cho[i] # NoVal)
    /\ Note(13, "a crash loses a promise",
            \E n \in Nodes : life'[n] > life[n] /\ jour'[n].prom < jour[n].prom)
    /\ Note(14, "a crash loses an acceptance",
            \E n \in Nodes : life'[n] > life[n] /\ jour'[n].acc # jour[n].acc)
    /\ Note(15, "a crash loses a message that waited",
            \E n \in Nodes : life'[n] > life[n] /\ later[n] # {})
    /\ Note(16, "a crash makes a chosen instance merely accepted",
            \E n \in Nodes : life'[n] > life[n] /\ ct'[n] < ct[n])
    /\ Note(17, "a leader crashes between its Accept and its own record",
            \E n \in Nodes : life'[n] > life[n] /\ lead[n].role = "lead"
                             /\ jour[n].acc # dur[n].acc)
    /\ Note(18, "a node leads after a restart",
            \E n \in Nodes : life[n] > 0 /\ lead'[n].role = "lead")
    /\ Note(19, "a value is chosen in two ballots",
            \E x, y \in votes' : /\ x[2] = y[2] /\ x[3] < y[3]
                                 /\ Cardinality({z \in votes' : z[2] = x[2] /\ z[3] = x[3]})
                                        >= Majority
                                 /\ Cardinality({z \in votes' : z[2] = y[2] /\ z[3] = y[3]})
                                        >= Majority)
    /\ Note(20, "an acknowledgement counts an instance known chosen but not accepted in its ballot",
            \E m \in new : m.t = "accepted" /\ \E i \in 1 .. m.u :
                /\ <<m.n, i>> \notin {<<x[1], x[2]>> : x \in {z \in votes' : z[3] = m.b}}
                /\ \E o \in msgs : o.t = "accept" /\ o.b = m.b /\ o.i = i)
    /\ Note(21, "an Accept beyond the window is not taken",
            \E n \in Nodes : \E m \in msgs' : m.t = "accept" /\ m.i > ct'[n] + Window
                             /\ m.b = jour'[n].prom)
    /\ Note(22, "all instances are chosen everywhere",
            \A n \in Nodes : ct'[n] = MaxInst)
    /\ Note(23, "an acknowledgement in b covers an instance where a value not of b is chosen",
            \E m \in new : m.t = "accepted" /\ \E i \in 1 .. m.u :
                \E o \in msgs : /\ o.t = "accept" /\ o.b = m.b /\ o.i = i
                               /\ \E x \in told : x[1] = i /\ x[2] # o.v)
    /\ Note(24, "a node restarts from what its store holds",
            \E n \in Nodes : life'[n] > life[n] /\ settled[n] > 0)
    /\ Note(25, "a node reports a chosen entry of which it no longer has the ballot",
            \E m \in new : m.t = "promise"
                /\ \E i \in Inst : m.rep[i][3] = "cho" /\ m.rep[i][1] = 0)
    /\ Note(26, "a node that lost an acceptance rejoins",
            \E n \in Nodes : loss[n].sus /\ ~loss'[n].sus
                             /\ \E x \in votes : x[1] = n /\ x[3] <= loss[n].top)
    /\ Note(27, "a leader is promised by a node that has rejoined",
            \E m \in new : m.t = "promise" /\ loss[m.n].n > 0)
=============================================================================
