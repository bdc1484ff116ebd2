"""What is chosen, and only somebody knows it who cannot tell it any more.

1 counted instances as chosen, settled them, and lost its store; its journal says that they were
chosen. The others accepted them, and never heard more. No log supplies them, no checkpoint reaches
that far, and a majority still holds them: phase 1 over those that report what they accepted
(docs/design/protocol.md, "What only acceptances know").
"""

from script import Script
from trimmed import SECOND, led, retire, settle

from phx.sim.wire_text import FLAG_LAST, encode, runs_of


def forgotten(
    nodes: int = 3, told: int = 2, count: int = 4, **options: int
) -> tuple[Script, int, list[bytes]]:
    """A node has chosen `count` instances and lost what they were; the others know `told` of them
    to be chosen and have accepted the rest. All were started again; nobody leads. Also which node
    (1 of three), and what they were."""
    s = Script(nodes=nodes, **options)
    lost = led(s)
    for number in range(told):
        s.submit(lost, b"%d" % number)
        s.flow()
    s.pass_time(100_000)
    assert {s.status(n)["chosen_through"] for n in s.nodes} == {told}
    for number in range(told, count):
        s.submit(lost, b"%d" % number)
    assert {m.dest for m in s.pick(f"{lost}→", "Accept")} == set(s.nodes) - {lost}
    s.deliver("Accept")
    s.deliver("Accepted")
    assert s.status(lost)["chosen_through"] == count
    settle(s, lost)
    retire(s, lost)
    bodies = list(s.settled[lost][0])
    assert len(bodies) == count
    s.kept[lost][0] = count + 1  # the store is gone: nothing below is there any more
    for n in s.nodes:
        s.crash(n)
    s.waiting.clear()
    for n in s.nodes:
        s.start(n)
        if n == lost:
            s.engines[lost].restoring(0, True)  # nor is there a machine that has applied them
    return s, lost, bodies


def wire(s: Script, *nodes: int) -> None:
    for a in nodes:
        for b in nodes:
            if a < b:
                s.connect(a, b)


def test_a_majority_that_accepted_it_chooses_it_again() -> None:
    s, lost, bodies = forgotten()
    assert lost == 1
    assert [s.status(n)["chosen_through"] for n in s.nodes] == [4, 0, 0]
    wire(s, *s.nodes)
    s.pass_time(10 * SECOND)
    leader = next(n for n in (2, 3) if s.status(n)["leading"])
    for n in (2, 3):
        assert s.status(n)["chosen_through"] >= 4
        assert [s.body(n, i) for i in range(1, 5)] == bodies
    before = s.status(leader)["chosen_through"]
    s.submit(leader, b"goes on")
    s.pass_time(SECOND)
    assert {s.status(n)["chosen_through"] for n in s.nodes} == {before + 1}
    assert [run.values for run in runs_of(s.body(leader, before + 1) or b"")] == [[b"goes on"]]


def test_they_may_be_more_than_a_window() -> None:
    """Nothing was settled by the others, so all of it is open again there; a window is 4."""
    s, lost, bodies = forgotten(told=10, count=11, window=4)
    assert lost == 1
    wire(s, *s.nodes)
    s.pass_time(20 * SECOND)
    for n in (2, 3):
        assert [s.body(n, i) for i in range(1, 12)] == bodies


def test_with_five_a_promise_that_comes_late_counts_too() -> None:
    """The first three promises of five are the candidate's, that of who only knows, and one more:
    two of them report. It waits for the other two."""
    s, lost, bodies = forgotten(nodes=5)
    others = [n for n in s.nodes if n != lost]
    wire(s, *s.nodes)
    for _ in range(1000):
        s.advance(10_000)
        s.flow(unless=lambda m: m.name == "Promise")
        if len(s.pick("Promise")) == 4:
            break
    (candidate,) = {m.dest for m in s.pick("Promise")}
    first, second, _ = [n for n in others if n != candidate]
    for n in (lost, first):
        assert s.deliver("Promise", f"{n}→{candidate}")
        s.flow(unless=lambda m: m.name == "Promise")
    s.advance(1000, candidate)
    assert not s.status(candidate)["leading"]
    s.lines.clear()
    assert s.deliver("Promise", f"{second}→{candidate}")
    s.flow(unless=lambda m: m.name == "Promise")
    assert s.status(candidate)["leading"]
    assert not s.said("Prepare")
    s.drop("Promise")
    s.pass_time(SECOND)
    for n in others:
        assert [s.body(n, i) for i in range(1, 5)] == bodies


def test_without_a_majority_that_accepted_it_nothing_is_proposed() -> None:
    """2 alone does not know: 3, which is away, and 1, which does not say what it accepted, may have
    chosen something else."""
    s, lost, _ = forgotten()
    assert lost == 1
    wire(s, 1, 2)
    s.lines.clear()
    s.pass_time(20 * SECOND)
    assert not s.said("Accept")
    assert s.status(2)["chosen_through"] < 4
    s.connect(1, 3)
    s.connect(2, 3)
    s.pass_time(10 * SECOND)
    assert s.status(2)["chosen_through"] == s.status(3)["chosen_through"] >= 4


def test_it_is_not_proposed_where_somebody_could_supply_it() -> None:
    """Values that a peer holds as chosen are learned: that is one message, and no election."""
    s, lost, bodies = forgotten()
    assert lost == 1
    s.kept[1].clear()
    s.crash(1)
    s.start(1)
    s.engines[1].restoring(0, True)
    s.lines.clear()
    wire(s, *s.nodes)
    for _ in range(40):
        s.pass_time(100_000)
        s.answer_fetches(1)
    assert [s.body(2, i) for i in range(1, 5)] == bodies
    again = [line for line in s.said("Accept") if " 0:4" in line or "i=4" in line]
    assert not again


def test_what_is_chosen_and_was_accepted_by_nobody_who_reports_is_not_filled() -> None:
    """Three of five report 1 to 4; a fourth says that 6 is chosen. A ballot above chose it."""
    s, lost, _ = forgotten(nodes=5)
    s.lines.clear()
    others = [n for n in s.nodes if n != lost]
    wire(s, *others)
    for _ in range(1000):
        s.advance(10_000)
        s.flow(unless=lambda m: m.name == "Promise")
        if len(s.pick("Promise")) == 3:
            break
    (candidate,) = {m.dest for m in s.pick("Promise")}
    ahead = next(n for n in others if n != candidate)
    (said,) = s.pick("Promise", f"{ahead}→")
    s.drop("Promise", f"{ahead}→")
    s.put(ahead, candidate, encode(
        "Promise", 0, said.ballot, flags=FLAG_LAST, first=said.fixed["first"], chosen=6, floor=7
    ))  # fmt: skip
    s.flow(unless=lambda m: m.name == "LearnAsk")
    assert s.pick("LearnAsk")
    for _ in range(20):  # each says that it has nothing of use
        for ask in s.pick("LearnAsk", f"{candidate}→"):
            s.drop("LearnAsk", f"→{ask.dest}")
            chosen, floor = (6, 7) if ask.dest == ahead else (0, 1)
            first = ask.fixed["first"]
            s.put(ask.dest, candidate, encode(
                "Learn", 0, 0, first=first, chosen=chosen, floor=floor, count=0
            ))  # fmt: skip
        s.advance(1000, candidate)
    assert not s.said("Accept")
    assert not s.status(candidate)["leading"]
    assert s.status(candidate)["chosen_through"] == 0
