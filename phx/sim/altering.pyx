# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Changes of members in a world; see altering.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from phx._core.engine cimport engine_change_members, engine_membership
from phx._core.members cimport MEMBER_LEARNER, MEMBER_VOTER, MEMBER_WITNESS
from phx._core.membership cimport is_removed
from phx._core.native cimport *
from phx._core.state cimport GroupMembers, MEMBERS_ACTIVE, MEMBERS_LEFT, Replica, find_group
from phx.sim.host cimport Host
from phx.sim.reference cimport Configuration, Log
from phx.sim.watch_members cimport watch_wiped
from phx.sim.world cimport World

from phx._core import members as rosters
from phx.membership import Membership

VOTER, WITNESS, LEARNER = MEMBER_VOTER, MEMBER_WITNESS, MEMBER_LEARNER
VERDICTS = (
    "under way", "not leading", "conflict", "busy", "not caught up", "no slot", "unsound",
)


def can_change(World world):
    return bool(world.watch.changing)


def voters(roles):
    return [node for node, role in roles.items() if role != LEARNER]


def change(World world, node, u32 group, version, roles):
    cdef Host h = world.host_of(node)
    cdef int verdict
    rows = [(one, roles[one], b"node%d:7000" % one) for one in sorted(roles)]
    cdef bytes value = rosters.write(version, 1, 0, rows)
    if h.engine == NULL:
        raise RuntimeError(f"node {node} is down")
    verdict = engine_change_members(h.engine, group, <const u8*>PyBytes_AS_STRING(value),
                                    PyBytes_GET_SIZE(value))
    h.note(verdict)
    h.touch(group)
    h.poke()
    if verdict == 0:
        if world.asked_members is None:
            world.asked_members = {}
        world.asked_members.setdefault(group, []).append((version, voters(roles)))
    if h.tracing is not None:
        h.tracing.append((h.agenda.now_us, "is to change", h.node, f"g{group}", f"v{version}",
                          str(roles), VERDICTS[verdict]))
    return verdict


def members(World world, u32 group):
    cdef Log* log
    cdef const Configuration* last
    cdef u32 all_of_them = 0
    cdef size_t i
    if not world.watch.changing or group >= world.watch.groups:
        raise KeyError(group)
    log = &world.watch.ref.logs[group]
    last = &log.configurations.back()
    for i in range(log.configurations.size()):
        all_of_them |= log.configurations[i].who.members
    roles = {}
    for node in range(1, world.n + 1):
        if last.who.members >> (node - 1) & 1:
            roles[node] = LEARNER
        if last.who.voters >> (node - 1) & 1:
            roles[node] = WITNESS if last.who.witnesses >> (node - 1) & 1 else VOTER
    return {"version": last.who.version, "instance": last.instance, "roles": roles,
            "active": bool(last.active),
            "ever": {node for node in range(1, world.n + 1) if all_of_them >> (node - 1) & 1}}


cdef object roster_of(const GroupMembers* found):
    return PyBytes_FromStringAndSize(<char*>found.value.data, found.value.size)


def known(World world, node, u32 group):
    cdef Host h = world.host_of(node)
    cdef GroupMembers found
    cdef Replica* r
    if h.engine == NULL or group >= world.watch.groups:
        raise KeyError((node, group))
    r = find_group(h.engine, group)
    engine_membership(h.engine, group, &found)
    roles = None
    if found.value != NULL:
        roles = {one: role for one, role, _ in rosters.read(roster_of(&found))[3]}
    return {"version": found.version, "instance": found.instance, "roles": roles,
            "active": bool(found.flags & MEMBERS_ACTIVE), "left": bool(found.flags & MEMBERS_LEFT),
            "proposed": r.members.change if r.members != NULL else 0}


def ended(World world, node, u32 group):
    cdef Host h = world.host_of(node)
    if h.engine == NULL or group >= world.watch.groups:
        raise KeyError((node, group))
    return bool(is_removed(find_group(h.engine, group)))


def tell(World world, node, u32 group, source):
    cdef Host h = world.host_of(node)
    cdef Host other = world.host_of(source)
    cdef GroupMembers found
    if other.engine == NULL or group >= world.watch.groups:
        return False
    engine_membership(other.engine, group, &found)
    if found.value == NULL:
        return False
    told = Membership(roster_of(&found), found.instance, found.floor,
                      bool(found.flags & MEMBERS_ACTIVE))
    if node not in told.nodes:
        return False
    h.joining[group] = told
    return True


def wipe(World world, node):
    cdef Host h = world.host_of(node)
    world.bring_down(h, True)
    watch_wiped(world.watch, node)


def counts(World world):
    made = world.watch.members
    return {"members_" + name: value for name, value in made.items()}
