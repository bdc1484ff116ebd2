"""The files of the durable machines of a node, and opening them at a start.

    DIR/machines/<group>.<machine>/<generation>/    what DurableMachine.open is given
    DIR/machines/<group>.<machine>/current          which of them counts (durable.generations)

What is damaged goes to ``DIR/quarantine/``, as the whole folder of the machine.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from phx.applier import GroupState
from phx.checkpoint.catalog import ROOT, put_aside
from phx.checkpoint.files import Files, join
from phx.durable.generations import Generations
from phx.errors import Damaged
from phx.machine import DurableMachine, StateMachine

__all__ = ["FOLDER", "Held", "begin", "durable_in", "hold", "let_go", "renewed", "sweep"]

log = logging.getLogger("phx")

FOLDER = "machines"

Factory = Callable[[int], dict[int, StateMachine]]


@dataclass
class Held:
    """A durable machine that is open, and not in use yet.

    Attributes:
        applied: the instance that its files hold the state of.
        fresh: nothing counts in its folder before `settle`.
    """

    machine: DurableMachine
    applied: int
    generation: Path
    generations: Generations
    fresh: bool

    def renew(self, machine: DurableMachine) -> None:
        """Close what there is, and open a new generation with this object, to be restored."""
        generation = self.generations.begin()
        self.machine.close()
        self.machine, self.generation, self.fresh = machine, generation, True
        self.applied = self._open_new()

    def switch(self) -> None:
        """From here on this generation counts. The one before it stays."""
        if self.fresh:
            self.generations.switch(self.generation)
            self.fresh = False

    def switch_back(self, before: Path | None) -> None:
        """Undo a `switch` as far as possible: `before` is what counted then. Raises nothing."""
        if not self.fresh and before is not None:
            try:
                self.generations.switch(before)
                self.fresh = True
            except (OSError, ValueError):
                log.exception("%s counts, though it is not in use", self.generation)

    def settle(self) -> None:
        """From here on this generation counts, and it alone stays."""
        self.switch()
        self.generations.sweep()

    def drop(self) -> None:
        """Close it; if it does not count, its files go."""
        try:
            self.machine.close()
        except Exception:
            log.exception("closing a machine")
        if self.fresh:
            shutil.rmtree(self.generation, ignore_errors=True)

    def _open_new(self) -> int:
        if applied := self.machine.open(self.generation):
            raise ValueError(f"a machine in a new folder says that {applied} is applied")
        return 0


def durable_in(machines: dict[int, StateMachine]) -> dict[int, DurableMachine]:
    return {one: it for one, it in machines.items() if isinstance(it, DurableMachine)}


def hold(
    files: Files,
    folder: Path,
    state: GroupState,
    factory: Factory,
    damaged: Callable[[str], None],
) -> dict[int, Held]:
    """Open the durable machines of a group, each with what its files hold; new ones begin there.

    Damaged files are put aside, and the machine begins anew: with another object, which is in
    `state.machines` then. Nothing new counts before `Held.settle`.

    Raises whatever `open` raises besides Damaged; nothing is open then.

    Args:
        files, folder: of the node; the latter is the former's root.
        damaged: is told in words of files that were put aside.
    """
    held: dict[int, Held] = {}
    try:
        for number, machine in durable_in(state.machines).items():
            place = join(FOLDER, f"{state.group}.{number}")
            try:
                held[number] = _open(folder / place, machine)
            except Damaged as error:
                aside = put_aside(files, ROOT, place, f"machine-{state.group}.{number}")
                damaged(
                    f"group {state.group}: the files of machine {number} are damaged ({error}), "
                    f"and now {aside}"
                )
                again = renewed(state, number, factory)
                held[number] = _open(folder / place, again)
    except BaseException:
        let_go(held)
        raise
    return held


def begin(folder: Path, group: int, number: int, machine: DurableMachine) -> Held:
    """A new generation of a machine whose files are in use, open with this object, to be restored.

    Nothing of it counts before `Held.switch`. Raises OSError, and whatever `open` raises.
    """
    generations = Generations(folder / FOLDER / f"{group}.{number}")
    held = Held(machine, 0, generations.begin(), generations, fresh=True)
    try:
        held.applied = held._open_new()
    except BaseException:
        held.drop()  # its contract: also if open raised
        raise
    return held


def sweep(folder: Path, group: int, number: int) -> None:
    """Remove the generations before the one that counts: none of them is open, and none has a
    view. Another one may be in the making meanwhile; it stays."""
    try:
        Generations(folder / FOLDER / f"{group}.{number}").sweep_older()
    except (OSError, Damaged) as error:
        log.warning("group %d: old files of machine %d stay: %s", group, number, error)


def renewed(state: GroupState, number: int, factory: Factory) -> DurableMachine:
    """A machine made anew, in the place of that of `state`."""
    made = factory(state.group)[number]
    if not isinstance(made, DurableMachine):
        raise TypeError(f"machine {number} of group {state.group} was made durable, and now is not")
    state.machines[number] = made
    return made


def let_go(held: dict[int, Held]) -> None:
    """Close them; their files are as they were."""
    for number, one in held.items():
        try:
            one.machine.close()
        except Exception:
            log.exception("closing machine %d", number)
    held.clear()


def _open(folder: Path, machine: DurableMachine) -> Held:
    generations = Generations(folder)
    current = generations.current()
    if current is None:
        generations.sweep()  # what a crash left: nothing in there counts, or is open
    held = Held(machine, 0, current or generations.begin(), generations, fresh=current is None)
    try:
        held.applied = held._open_new() if held.fresh else machine.open(held.generation)
    except BaseException:
        machine.close()  # its contract: also if open raised
        raise
    return held
