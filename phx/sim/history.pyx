# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The search for an order of operations; see history.pyi."""

from phx._core.native cimport *

cdef extern from "<algorithm>" namespace "std" nogil:
    void sort(Place* first, Place* end,
              bint (*earlier)(const Place&, const Place&) noexcept nogil)

STEPS_MAX = 500_000
cdef Py_ssize_t WINDOW_BEFORE = 6
cdef Py_ssize_t SHOWN_STATES = 6
cdef Py_ssize_t SHOWN_BYTES = 32


class _Mark:
    __slots__ = ("name",)

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return self.name


UNSEEN = _Mark("UNSEEN")
IMPOSSIBLE = _Mark("IMPOSSIBLE")
cdef object unseen = UNSEEN
cdef object impossible = IMPOSSIBLE


cdef class Operation:
    """See history.pyi."""

    def __init__(self, client, key, str kind not None, argument, result, i64 called_us,
                 returned_us):
        self.client = client
        self.key = key
        self.kind = kind
        self.argument = argument
        self.result = result
        self.called_us = called_us
        self.returned_us = returned_us

    def __repr__(self):
        call = f"{self.called_us:>12} "
        if self.returned_us is None:
            until, gave = "           ? ", "unknown"
        else:
            until, gave = f"{self.returned_us:>12} ", _short(self.result)
        argument = "" if self.argument is None else _short(self.argument)
        return f"{call}..{until} client {self.client}: {self.kind}({argument}) -> {gave}"


# --- a register of bytes

cdef object register_step(object state, Operation one):
    cdef str kind = one.kind
    cdef object result = unseen if one.returned_us is None else one.result
    if kind == "get":
        return state if result is unseen or result == state else impossible
    if kind == "put":
        return one.argument
    if kind == "append":
        made = (state or b"") + one.argument
        return made if result is unseen or result == made else impossible
    if kind == "cas":
        expected, new = one.argument
        if state == expected:
            return new if result is unseen or result else impossible
        return state if result is unseen or not result else impossible
    if kind == "delete":
        return None if result is unseen or result == (state is not None) else impossible
    raise ValueError(f"an operation that the model does not know: {kind!r}")


# As `KeyValueModel.waits`; `growing`: there are none but `get` and `append`.
cdef bint register_waits(object state, Operation one, bint growing) except -1:
    cdef str kind = one.kind
    if kind == "put":
        return False
    if one.result is not unseen and growing and kind in GROWING:
        # A value that only grows never becomes one that it is no beginning of.
        return one.result is not None and one.result.startswith(state or b"")
    return True


cdef class KeyValueModel:
    """See history.pyi."""

    initial = None

    def step(self, state, Operation operation not None):
        return register_step(state, operation)

    def changes(self, Operation operation not None):
        return operation.kind != "get"

    def waits(self, state, Operation operation not None, kinds):
        return register_waits(state, operation, kinds <= GROWING)


cdef object GROWING = {"get", "append"}


# --- what is said

class Finding:
    """See history.pyi."""

    __slots__ = ("key", "kind", "message", "window")

    def __init__(self, kind, key, message, window):
        self.kind = kind
        self.key = key
        self.message = message
        self.window = list(window)

    def __str__(self):
        lines = [f"{self.kind}: key {self.key!r}: {self.message}"]
        return "\n".join(lines + [f"  {operation!r}" for operation in self.window])


def _short(value):
    """For a reader."""
    if isinstance(value, tuple):
        return ", ".join([_short(one) for one in value])
    if isinstance(value, bytes) and len(value) > SHOWN_BYTES:
        return f"{value[:SHOWN_BYTES]!r}… ({len(value)} bytes)"
    return repr(value)


def check_history(operations, model=None, *, steps_max=STEPS_MAX):
    """See history.pyi."""
    cdef dict keys = {}
    cdef list history
    cdef Operation one
    cdef _Search search
    for one in operations:
        if one.returned_us is not None and one.returned_us < one.called_us:
            raise ValueError(f"returned before it was called: {one!r}")
        found = keys.get(one.key)
        if found is None:
            keys[one.key] = [one]
        else:
            (<list>found).append(one)
    undecided = None
    for key, history in keys.items():
        search = _Search(key, history, KeyValueModel() if model is None else model, steps_max)
        try:
            found = search.run()
        except _TooMany:
            undecided = undecided or search.undecided()
            continue
        if found is not None:
            return found
    return undecided


class _TooMany(Exception):
    """More steps than are allowed."""


# --- by time

cdef struct Place:
    i64 at_us
    i64 also_us
    Py_ssize_t index           # what comes first of equal ones is what came first


cdef bint earlier(const Place& one, const Place& other) noexcept nogil:
    if one.at_us != other.at_us:
        return one.at_us < other.at_us
    if one.also_us != other.also_us:
        return one.also_us < other.also_us
    return one.index < other.index


cdef list in_order(list operations, bint by_return):
    cdef vector[Place] places
    cdef Place place
    cdef Operation one
    cdef size_t i
    place.also_us = 0
    place.index = 0
    for one in operations:
        place.at_us = one.called_us
        if by_return:
            place.at_us, place.also_us = one.returned_us, one.called_us
        places.push_back(place)
        place.index += 1
    sort(places.data(), places.data() + places.size(), earlier)
    return [operations[places[i].index] for i in range(places.size())]


# --- the search

# The configurations of one key, from return to return. An open call has a slot, a bit: in a
# configuration's mask the bit says that it took effect.
cdef class _Search:
    cdef object key
    cdef list history
    cdef object model
    cdef bint registers           # the model is KeyValueModel: it is not asked, but gone round
    cdef object model_step
    cdef i64 steps_left
    cdef i64 steps_max
    cdef dict open                # bit -> a call whose outcome is known
    cdef dict unknown             # bit -> one whose outcome is not
    cdef object unknown_mask
    cdef list states              # (mask, state)
    cdef Operation at

    def __init__(self, key, list history, model, i64 steps_max):
        self.key = key
        self.history = history
        self.model = model
        self.registers = type(model) is KeyValueModel
        self.model_step = None if self.registers else model.step
        self.steps_left = steps_max
        self.steps_max = steps_max
        self.open = {}
        self.unknown = {}
        self.unknown_mask = 0
        self.states = [(0, model.initial)]

    cdef object step(self, state, Operation operation):
        if self.registers:
            return register_step(state, operation)
        return self.model_step(state, operation)

    cdef bint waits(self, state, Operation operation, kinds, bint growing) except -1:
        if self.registers:
            return register_waits(state, operation, growing)
        return self.model.waits(state, operation, kinds)

    cdef bint changes(self, Operation operation) except -1:
        if self.registers:
            return operation.kind != "get"
        return self.model.changes(operation)

    cdef object run(self):
        cdef list calls = in_order(self.history, False)
        cdef list returns = in_order(
            [one for one in self.history
             if (<Operation>one).returned_us is not None
             and ((<Operation>one).result is not unseen or self.changes(<Operation>one))], True)
        cdef dict bits = {}
        cdef list free = []
        cdef Py_ssize_t slots = 0, at = 0, count = len(calls)
        cdef Operation operation, call
        cdef i64 now_us
        cdef bint unknown
        for operation in returns:
            now_us = operation.returned_us
            while at < count:
                call = <Operation>calls[at]
                if call.called_us > now_us:
                    break
                at += 1
                unknown = call.returned_us is None
                if (unknown or call.result is unseen) and not self.changes(call):
                    continue
                if free:
                    bit = free.pop()
                else:
                    bit = (<object>1) << slots
                    slots += 1
                if unknown:
                    self.unknown[bit] = call
                    self.unknown_mask |= bit
                else:
                    self.open[bit] = call
                    bits[<size_t><void*>call] = bit
            bit = bits.pop(<size_t><void*>operation)
            before = self.states
            self.at = operation
            self.finish(operation, bit)
            if not self.states:
                return self.finding(operation, before)
            free.append(bit)
        return None

    # `operation` returns: keep what can have happened by then.
    cdef int finish(self, Operation operation, bit) except -1:
        cdef list states = self.states
        cdef list todo = []
        cdef _Least done
        del self.open[bit]
        if len(states) == 1 and not self.open and not self.unknown:  # alone: the usual case
            mask, state = states[0]
            if not mask & bit:
                self.count(1)
                state = self.step(state, operation)
            self.states = [] if state is impossible else [(0, state)]
            return 0
        done = _Least(self.unknown_mask)
        for mask, state in states:
            if mask & bit:
                done.add(mask & ~bit, state)
            else:
                todo.append((mask, state))
        if todo:
            self.extend(todo, done, operation)
        self.states = done.all()
        return 0

    # Let open calls take effect, in every order, until `operation` does.
    cdef int extend(self, list todo, _Least done, Operation operation) except -1:
        cdef _Least seen = _Least(self.unknown_mask)
        cdef bint asks = bool(self.unknown)     # whether they help: else there are none
        cdef bint growing = False, helps = False
        kinds = set()
        for mask, state in todo:
            seen.add(mask, state)
        todo = seen.all()
        if asks:
            kinds = {(<Operation>one).kind
                     for calls in (self.open, self.unknown) for one in calls.values()}
            growing = kinds <= GROWING
        while todo:
            mask, state = todo.pop()
            if not seen.has(mask, state):
                continue  # a lesser one came up meanwhile
            self.count(1 + len(self.open))
            made = self.step(state, operation)
            if made is not impossible:
                done.add(mask, made)
            helps = asks and self.waits(state, operation, kinds, growing)
            for bit, other in self.open.items():
                if mask & bit:
                    continue
                helps = helps or (asks and self.waits(state, <Operation>other, kinds, growing))
                made = self.step(state, <Operation>other)
                if made is not impossible and seen.add(mask | bit, made):
                    todo.append((mask | bit, made))
            if not helps:
                continue
            self.count(len(self.unknown))
            for bit, other in self.unknown.items():
                if mask & bit:
                    continue
                made = self.step(state, <Operation>other)
                if made is not impossible and seen.add(mask | bit, made):
                    todo.append((mask | bit, made))
        return 0

    cdef int count(self, Py_ssize_t steps) except -1:
        self.steps_left -= steps
        if self.steps_left < 0:
            raise _TooMany
        return 0

    # --- what is said

    cdef object finding(self, Operation operation, list before):
        values = sorted({_short(state) for _, state in before})
        shown = ", ".join(values[:SHOWN_STATES])
        if len(values) > SHOWN_STATES:
            shown += f" and {len(values) - SHOWN_STATES} more"
        message = (
            f"no order of the operations explains what {operation.kind} of client "
            f"{operation.client} returned at {operation.returned_us}: {_short(operation.result)}; "
            f"without it the value was {shown}, or what the open calls made of that"
        )
        return Finding("linearizable", self.key, message, self.window(operation))

    cdef object undecided(self):
        message = (
            f"not decided within {self.steps_max} steps; "
            f"{len(self.open)} open calls and {len(self.unknown)} of unknown outcome "
            f"when {self.at.kind} of client {self.at.client} returned at {self.at.returned_us}"
        )
        return Finding("undecided", self.key, message, self.window(self.at))

    # What overlaps the operation, some that came just before, and who wrote what it saw.
    cdef list window(self, Operation operation):
        cdef Operation other
        cdef i64 end_us = operation.returned_us
        chosen = [operation]
        before = []
        for other in self.history:
            if other is operation or other.called_us > end_us:
                continue
            wrote = other.kind != "get" and other.argument == operation.result
            if wrote or other.returned_us is None or other.returned_us >= operation.called_us:
                chosen.append(other)
            else:
                before.append(other)
        return in_order(chosen + in_order(before, True)[-WINDOW_BEFORE:], False)


# Configurations, of which only those remain that used the fewest unknown calls.
cdef class _Least:
    cdef object unknown_mask
    cdef dict found               # (mask of known calls, state) -> masks of unknown ones

    def __init__(self, unknown_mask):
        self.unknown_mask = unknown_mask
        self.found = {}

    # False: one that can do as much is there already.
    cdef bint add(self, mask, state) except -1:
        used = mask & self.unknown_mask
        place = (mask & ~self.unknown_mask, state)
        least = self.found.get(place)
        if least is None:
            self.found[place] = [used]
            return True
        for other in least:
            if not other & ~used:
                return False
        least[:] = [other for other in least if used & ~other]
        least.append(used)
        return True

    cdef bint has(self, mask, state) except -1:
        return (mask & self.unknown_mask) in self.found[mask & ~self.unknown_mask, state]

    cdef list all(self):
        return [(known | used, state) for (known, state), least in self.found.items()
                for used in least]
