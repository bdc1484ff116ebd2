"""A journal that is lost, in the folder of a node that does not run: may the node go on without it?

Guarantee. What is allowed is one loss: the store says which life follows it, and that a journal
which does not know that life may be done without. A start that has a new journal takes the leave
back, or does not go on (`phx.node.lives`), so a later loss is judged by the configuration again. A
crash between any two steps leaves a folder that refuses to start, or one that is as it was, or the
finished one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from phx._core.survey import Survey
from phx.checkpoint.catalog import ROOT, put_aside
from phx.checkpoint.files import OsFiles
from phx.errors import Foreign
from phx.node.folder import Folder
from phx.store import MAP_BYTES, Store
from phx.store_facts import Facts, read, write
from phx.store_folder import StoreIdentity, read_identity

__all__ = ["Loss", "allow", "examine", "look"]


@dataclass(frozen=True, slots=True)
class Loss:
    """A journal that a start would not go on with, and what the store knows besides."""

    why: str
    facts: Facts
    owner: StoreIdentity


def examine(folder: Path, owner: StoreIdentity) -> Loss | str:
    """What is lost; or why nothing can be allowed. The caller has the folder to itself.

    Raises StoreError, and Damaged if the store does not know of the node's lives any more.
    """
    place = Folder(folder)
    store = Store.open(place.store, cluster=owner.cluster, node=owner.node)
    try:
        facts = read(store)
    finally:
        store.close()
    if place.begun:
        return "it was never completely made: start it with bootstrap=True"
    if place.taken_over:
        return "its journal begins with its first start"
    try:
        why = lost_because(place, owner, facts)
    except Foreign as error:
        return str(error)
    if why is None:
        return "the journal is whole: there is nothing to be done without"
    if facts is None:
        return (
            f"the journal: {why}; and the store does not know what the node has promised: it must "
            "not vote again under its id. Put another node in its place"
        )
    return Loss(why, facts, owner)


def look(folder: Path) -> Loss | str:
    """`examine`, of a folder whose owner need not be known."""
    return examine(folder, read_identity(Folder(folder).store, MAP_BYTES))


def lost_because(place: Folder, owner: StoreIdentity, facts: Facts | None) -> str | None:
    """Why a start would not go on with the journal; None: it would. Raises Foreign if it is refused
    for another reason than damage."""
    if not (place.journal.is_dir() and any(place.journal.iterdir())):
        return "it is gone"
    survey = Survey(place.journal, cluster=owner.cluster, node=owner.node, store_id=owner.store_id)
    if survey.verdict is not None:
        code, text = survey.verdict
        if code not in ("damaged", "missing"):
            raise Foreign(f"the journal: {code}: {text}. That is no loss")
        return f"{code}: {text}"
    if facts is not None and survey.incarnation < facts.lost:
        return f"it was lost in life {facts.lost}, of which it does not know"
    return None


def allow(folder: Path, loss: Loss) -> str | None:
    """Let the next start go on without the journal; where what is left of it was put, if anything
    is. Durable on return. Raises StoreError and OSError: nothing is allowed then, or all of it.
    """
    place = Folder(folder)
    facts = loss.facts.found_lost()
    store = Store.open(place.store, cluster=loss.owner.cluster, node=loss.owner.node)
    try:
        write(store, replace(facts, allowed=facts.lost))
    finally:
        store.close()
    if not (place.journal.is_dir() and any(place.journal.iterdir())):
        return None
    return put_aside(OsFiles(folder), ROOT, place.journal.name, place.journal.name)
