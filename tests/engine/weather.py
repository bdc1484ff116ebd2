"""What random runs of a script have in common: messages that come late, twice or never, syncs that
come late, time that passes, links that are cut; and the end of all of it."""

import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from script import Script


class Violation(AssertionError):
    pass


class Weather(Script):
    """Bad weather, of four kinds by the seed. Nodes sync by hand only, until it is `quiet`.

    Attributes:
        reference: sees every message that leaves (`leaves`).
        gone: nodes that never come back.
    """

    STEPS = 1500
    REACH = 60  # so many messages, the oldest, may be the next one
    reference: Any

    def begin(self, seed: int) -> None:
        """Before the script begins."""
        self.random = random.Random(seed)
        self.seed = seed
        self.loss = (0.0, 0.02, 0.05, 0.15)[seed % 4]
        self.bad = seed % 4
        self.quiet = False
        self.gone: set[int] = set()
        self.counts: dict[str, int] = defaultdict(int)

    def acts(self) -> list[tuple[Callable[[], None], float]]:
        """What may happen, and how often."""
        raise NotImplementedError

    def settle_down(self) -> None:
        """All is well at last, or it is a Violation."""
        raise NotImplementedError

    def run(self) -> None:
        what, weights = zip(*self.acts(), strict=True)
        try:
            for act in self.random.choices(what, weights, k=self.STEPS):
                act()
            self.settle_down()
        except Violation as broken:
            raise Violation(f"seed {self.seed}: {broken}") from broken

    def put(self, source: int, dest: int, payload: bytes) -> None:
        super().put(source, dest, payload)
        if self.fetches[dest]:
            self.answer_fetches(dest)

    # --- what happens

    def deliver_one(self) -> None:
        moving = [m for m in self.waiting[: self.REACH] if self.ready(m)]
        if not moving:
            return
        m = moving[0] if self.quiet or self.random.random() < 0.7 else self.random.choice(moving)
        self.reference.leaves(m)
        if self.quiet or self.random.random() >= 0.03:  # else it comes again
            self.waiting = [w for w in self.waiting if w is not m]
        if m.dest in self.engines and (self.quiet or self.random.random() >= self.loss):
            self.put(m.source, m.dest, m.raw)

    def deliver_some(self) -> None:
        for _ in range(self.random.choice((1, 4, 16, 64))):
            self.deliver_one()

    def sync_one(self) -> None:
        behind = [n for n in self.engines if self.durable[n] < self.end[n]]
        if behind:
            self.sync(self.random.choice(behind))

    def time(self) -> None:
        self.now += self.random.choice((1_000, 5_000, 20_000, 60_000))
        for n in list(self.engines):
            if self.quiet or self.random.random() < 0.8:
                self.engines[n].advance(self.now)
                self.turn(n)

    def cut(self) -> None:
        a, b = self.random.sample(sorted(self.engines), 2)
        if (min(a, b), max(a, b)) in self.cuts:
            self.connect(a, b)
        else:
            self.disconnect(a, b)

    # --- and at the end

    def clear_up(self) -> None:
        """Nothing is lost or late any more, and all are back that are not gone."""
        self.quiet = True
        self.lazy = set()
        for a, b in list(self.cuts):
            if a in self.engines and b in self.engines:
                self.connect(a, b)
        self.cuts = set()
        for n in self.nodes:
            if n in self.gone:
                continue
            if n not in self.engines:
                self.restart(n)
            self.sync(n)
            self.turn(n)
