------------------------------ MODULE MCLease ------------------------------
(* The finite instances of Lease that TLC checks, and what they must reach. *)
EXTENDS Lease, TLC

CONSTANTS n1, n2, n3

Owners12 == <<n1, n2>>
Owners121 == <<n1, n2, n1>>

\* A reachable beginning: n1 leads in ballot 1, which all have promised; nothing is proposed.
InitLed ==
    /\ prom = [n \in Nodes |-> 1] /\ dur = prom
    /\ acc = [n \in Nodes |-> [b |-> 0, u |-> 0]]
    /\ last = [n \in Nodes |-> 0] /\ ct = last
    /\ lead = [n \in Nodes |-> IF n = n1 THEN [NoLead EXCEPT !.role = "lead", !.b = 1, !.next = 1]
                               ELSE NoLead]
    /\ grant = [n \in Nodes |-> NoGrant]
    /\ held = [n \in Nodes |-> NoneHeld]
    /\ sent = [n \in Nodes |-> NoneSent]
    /\ quiet = [n \in Nodes |-> 0]
    /\ msgs = {} /\ known = 0 /\ read = NoRead /\ crashes = 0
SpecLed == InitLed /\ [][Next]_vars

\* Another one: n2 leads in ballot 2 since, has something chosen, and n1 has not heard of it.
InitOvertaken ==
    /\ prom = [n \in Nodes |-> IF n = n1 THEN 1 ELSE 2] /\ dur = prom
    /\ acc = [n \in Nodes |-> IF n = n1 THEN [b |-> 0, u |-> 0] ELSE [b |-> 2, u |-> 1]]
    /\ last = [n \in Nodes |-> IF n = n1 THEN 0 ELSE 1]
    /\ ct = [n \in Nodes |-> IF n = n2 THEN 1 ELSE 0]
    /\ lead = [n \in Nodes |->
          CASE n = n1 -> [NoLead EXCEPT !.role = "lead", !.b = 1, !.next = 1]
            [] n = n2 -> [NoLead EXCEPT !.role = "lead", !.b = 2, !.next = 2]
            [] OTHER -> NoLead]
    /\ grant = [n \in Nodes |-> NoGrant]
    /\ held = [n \in Nodes |-> NoneHeld]
    /\ sent = [n \in Nodes |-> NoneSent]
    /\ quiet = [n \in Nodes |-> 0]
    /\ msgs = {[t |-> "prepare", b |-> 2, rel |-> 0], [t |-> "accept", b |-> 2, u |-> 1]}
    /\ known = 1 /\ read = NoRead /\ crashes = 0
SpecOvertaken == InitOvertaken /\ [][Next]_vars

-----------------------------------------------------------------------------
Note(k, name, seen) ==
    IF TLCGet(k) THEN TRUE
    ELSE IF seen THEN TLCSet(k, TRUE) /\ PrintT(<<"reached", name>>)
    ELSE TRUE

ASSUME \A k \in 1 .. 20 : TLCSet(k, FALSE)

Watch ==
    LET new == msgs' \ msgs IN
    /\ Note(1, "a second node holds a lease",
            \E n \in Nodes : Believes(n)' /\ \E m \in msgs : m.t = "ack" /\ Owner[m.b] # n)
    /\ Note(2, "two nodes lead at once, one under a lease",
            \E n, o \in Nodes : n # o /\ Believes(n)' /\ lead'[o].role = "lead")
    /\ Note(3, "a grant outlives the lease",
            \E n, o \in Nodes : /\ lead'[n].role = "lead" /\ held'[n][o] = 0
                                /\ grant'[o].b = lead'[n].b)
    /\ Note(4, "a promise is held up by a grant",
            \E n \in Nodes : \E m \in msgs' : m.t = "prepare" /\ m.b > prom'[n]
                                              /\ GrantRuns(n, m.b, m.rel)')
    /\ Note(5, "a transfer passes over a grant that runs",
            \E m \in new : m.t = "promise" /\ grant[m.n].left > 0 /\ grant[m.n].b = prom[m.n]
                           /\ m.b > prom[m.n])
    /\ Note(6, "a leader counts on a grant that was forgotten by a restart",
            \E n, o \in Nodes : quiet'[o] > 0 /\ Believes(n)' /\ held'[n][o] > 0)
    /\ Note(7, "a crash forgets a promise on which a lease rests",
            \E n, o \in Nodes : crashes' > crashes /\ prom'[o] < prom[o]
                                /\ Believes(n) /\ held[n][o] > 0)
    /\ Note(8, "a leader holds a lease before it has recovered",
            \E n \in Nodes : Believes(n)' /\ ~Ready(n)' /\ known' > ct'[n])
    /\ Note(9, "a leader is overtaken, and something is chosen that it does not know",
            \E n, o \in Nodes : lead'[n].role = "lead" /\ Ready(n)' /\ known' > ct'[n])
    /\ Note(10, "a read is checked by a leader whose lease does not run",
            read'.st = "done" /\ read.st = "asked" /\ ~Runs(read.at))
    /\ Note(11, "a point is taken anew, and is another one",
            read'.b > read.b /\ read.st = "asked" /\ read'.point > read.point)
    /\ Note(12, "a lease read sees what is chosen",
            \E n \in Nodes : Believes(n)' /\ Ready(n)' /\ known' > 0)
    /\ Note(13, "a lease is renewed",
            \E n, o \in Nodes : held'[n][o] > held[n][o] /\ held[n][o] > 0)
=============================================================================
