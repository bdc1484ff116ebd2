"""Groups that a node hosts for the first time, with the start of a cluster or later: who their
members are.

Of version 1, which no log says, they are those of the configuration, and all nodes that host the
group must mean the same: else each counts quorums of its own, and two values are chosen. Those that
the cluster began with do, as long as their files name who they named then. The file of a node that
joined need not name anybody but itself, so it counts for no group: there the node is a member by a
later version, or not at all, and waits until it is (`phx.node.joining.Admission`).

    with `join`       the node waits to be a member, and knows the members before it hosts the group
    without           the file names whom it named when the node began (store_first.py), and most of
                      them are members of something still; or the node does not open

What the store's facts say that it hosts is none of these: so a group is in there only when its
members are known, durably. (A start that is cut short while it waits begins again.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from phx import store_first
from phx._core.survey import Survey
from phx.checkpoint.catalog import Catalog
from phx.config import Config
from phx.errors import ConfigError, StoreError
from phx.membership import Membership
from phx.node.addresses import Addresses
from phx.node.joining import Admission
from phx.node.lives import Lives
from phx.store import Store
from phx.store_facts import read
from phx.store_members import of_journal

__all__ = ["Beginning"]

log = logging.getLogger("phx")

INSTEAD = "set `join`, and have that group take this node for a member"

Ask = Callable[[Callable[[Store], Any]], Future[Any]]


class Beginning:
    """Of one start of a node: `look`, then the life is raised, then `admit`.

    Args:
        hosted: the ids of its groups.

    Attributes:
        new: those that it waits to be a member of: they are not hosted yet.
        others: it joined, or was a member of some group with others: though it may not know where
            they are, as that went with its store.
    """

    def __init__(self, config: Config, hosted: Iterable[int]) -> None:
        self._config = config
        self._folder = Path(config.dir)
        self._hosted = frozenset(hosted)
        self._admission: Admission | None = None
        self._ended = False
        self._changed: dict[int, Membership] = {}
        self.new: frozenset[int] = frozenset()
        self.others = bool(config.join)

    def find_others(self, store: Store, journal: Survey | None, catalog: Catalog) -> None:
        """Before `others` is asked for."""
        rows = members_of(store, journal, catalog).values()
        self.others = self.others or any(set(one.nodes) - {self._config.node} for one in rows)

    def look(
        self, store: Store, journal: Survey | None, catalog: Catalog, ask: Ask, *, create: bool
    ) -> None:
        """Which groups are new. Raises ConfigError: the file cannot say who their members are;
        StoreError."""
        joins = bool(self._config.join)
        known = frozenset() if create else hosted_before(store, journal, catalog)
        new = self._hosted - known
        changed = members_of(store, journal, catalog)
        self._changed = changed
        first = None if create else self._first(store, ask, changed)
        unchanged = self._hosted - changed.keys()
        if joins:
            self.new = new
            self._compare(unchanged - new, first, said=False)
        elif not create:
            self._compare(unchanged, first, said=True)
            if new:
                self._refuse_new(min(new), known & self._hosted, first, changed)
        if create:
            ids = () if joins else tuple(self._config.members)
            store_first.keep(self._folder, ids)
            ask(lambda store: store_first.write(store, ids)).result()

    def _first(
        self, store: Store, ask: Ask, changed: Mapping[int, Membership]
    ) -> frozenset[int] | None:
        """Who the first members were, and each place that knows it knows it from now on. None: it
        is not known."""
        first, kept = store_first.read(store), store_first.read_file(self._folder)
        known = first if first is not None else kept
        if known is None and not (self._config.join or changed):
            known = frozenset(self._config.members)  # this folder is older than that it is kept
        if known is not None:
            with suppress(StoreError):  # for want of room, perhaps: at the next start, then
                if first is None:
                    ask(lambda store: store_first.write(store, known)).result()
                if kept != known:
                    store_first.keep(self._folder, known)
        return known

    def _compare(
        self, unchanged: frozenset[int], first: frozenset[int] | None, *, said: bool
    ) -> None:
        """Those whose members never changed have them of the file. Raises ConfigError: it is not
        that of the beginning.

        Args:
            said: without `join`; so where nothing is known of the beginning, the file says it.
        """
        ids = frozenset(self._config.members)
        if not unchanged or first == ids or (first is None and said):
            return
        if first is None:
            raise ConfigError(
                [
                    f"join: the members of group {min(unchanged)} never changed, and nothing here "
                    "says who they are: take `join` out, and name them in [members]"
                ]
            )
        if not first and not said:
            raise ConfigError(
                [
                    f"groups: group {min(unchanged)} was begun here with the members of this file, "
                    "which is that of a node that joined: nobody else has that group. Start a new "
                    "node in the place of this one"
                ]
            )
        if not first:
            raise ConfigError(
                [f"groups: group {min(unchanged)} is new here, and this node joined: {INSTEAD}"]
            )
        raise ConfigError(
            [
                f"members: those of group {min(unchanged)} never changed, so they are whom "
                f"[members] named when this node began, {listed(first)}; now it names "
                f"{listed(ids)}. Name those again: members change by add_member, and by nothing "
                "else"
            ]
        )

    def _refuse_new(
        self,
        new: int,
        known: frozenset[int],
        first: frozenset[int] | None,
        changed: Mapping[int, Membership],
    ) -> None:
        """Raises ConfigError if this one cannot begin as it would at the others, or not at all."""
        ids = frozenset(self._config.members)
        if first is None and changed:
            raise ConfigError(
                [
                    f"groups: group {new} is new here, and who the first members of this cluster "
                    "were is not known any more: set `join`, and have that group's members changed "
                    "at a node that has it, in whatever way that keeps this one"
                ]
            )
        if not known:
            return
        there = set().union(*(changed[one].nodes if one in changed else ids for one in known))
        gone = ids - there
        if 2 * len(gone) >= len(ids):
            raise ConfigError(
                [
                    f"groups: group {new} is new here, and of its first members, {listed(ids)}, "
                    f"{listed(gone)} are members of no other group any more: it would never have a "
                    "leader"
                ]
            )
        if gone:
            log.warning(
                "group %d is new here, and begins with the members %s, of which %s is a member of "
                "no other group any more: put another in its place (replace_member)",
                new, listed(ids), listed(gone),
            )  # fmt: skip

    def admit(self, ask: Ask, lives: Lives, addresses: Addresses, store_id: bytes) -> None:
        """Blocks until the node is a member of the groups that are new, and they are hosted.
        Raises Closed: it was ended; StoreError."""
        meet(addresses, self._changed.values(), {})
        if not self.new:
            return
        others = [at for node, at in addresses.texts().items() if node != self._config.node]
        asked = replace(self._config, join=tuple(dict.fromkeys([*self._config.join, *others])))
        admission = self._admission = Admission(asked, self.new, lives.incarnation, store_id)
        if self._ended:
            admission.end()
        admission.wait()
        rows = admission.rows()
        ask(lambda store: store.keep_members(rows)).result()
        meet(addresses, admission.members.values(), admission.peers)
        lives.host(self.new)

    def end(self) -> None:
        """Do not wait. Any thread."""
        self._ended = True
        if self._admission is not None:
            self._admission.end()


def is_known(address: str) -> bool:
    return bool(address) and not address.endswith(":0")


def meet(addresses: Addresses, told: Iterable[Membership], where: dict[int, str]) -> None:
    """Who is a member, and nobody knows where, is where the change said: the store, which keeps
    that, may have been lost, or not have come to it."""
    named = named_by(told, where)
    unknown = {node for node in named if not is_known(addresses.text(node))}
    addresses.meet({node: named[node] for node in unknown})


def named_by(told: Iterable[Membership], where: dict[int, str]) -> dict[int, str]:
    """The members, and where they are: as somebody knows, else as the change said."""
    living = [each.members() for each in told if each.nodes]  # else it was deleted
    named = {node: one.address for each in living for node, one in each.by_id.items()}
    return {node: where.get(node, at) for node, at in named.items()}


def hosted_before(store: Store, journal: Survey | None, catalog: Catalog) -> frozenset[int]:
    """All groups of which anything says that this node hosted them."""
    facts = read(store)
    groups = set(facts.groups) if facts is not None else set()
    groups.update(store.members(), store.settled(), catalog.groups())
    if journal is not None:
        groups.update((row[0] for row in journal.groups), journal.members)
    return frozenset(groups)


def members_of(store: Store, journal: Survey | None, catalog: Catalog) -> dict[int, Membership]:
    """The newest of each group whose members ever changed, as far as the folder knows."""
    found = {group: row.membership for group, row in store.members().items()}
    told = [
        (one.group, one.membership)
        for one in chain.from_iterable(catalog.groups().values())
        if one.membership is not None
    ]
    if journal is not None:
        with suppress(ValueError):  # whoever replays it says what is wrong
            rows = of_journal(journal.members)
            told += [(group, row.membership) for group, row in rows.items()]
    for group, one in told:
        if group not in found or found[group].version < one.version:
            found[group] = one
    return found


def listed(ids: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ids)))
