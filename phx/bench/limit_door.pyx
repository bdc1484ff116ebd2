# distutils: language = c++
# distutils: include_dirs = phx/_core
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""Python's side of the bare cluster: files, nodes, futures; and bare syncs and round trips."""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.string cimport memset

from phx._core.disk cimport disk_folder_open
from phx._core.native cimport *
from phx._core.port cimport *
from phx.bench.limit cimport *

import os

cdef extern from "<errno.h>" nogil:
    int ECONNRESET

cdef extern from "Python.h":
    object PyObject_CallNoArgs(object call)
    object PyObject_CallMethodOneArg(object self, object name, object arg)


cdef i64 check(i64 outcome) except -1:
    if outcome < 0:
        raise OSError(<int>-outcome, os.strerror(<int>-outcome))
    return outcome


cdef class File:
    """A file of zeros in a folder of its own, made by the code that makes phx's journals.

    Args:
        folder: made if it is not there, and locked until `close`.
        nbytes: of the file; written out and synced before this returns.

    Raises:
        OSError: as the operating system says.
    """

    def __cinit__(self, str folder, u64 nbytes):
        cdef bytes path = os.fsencode(folder)
        cdef bytes zeros = bytes(min(nbytes, <u64>ARENA_BYTES))
        cdef u64 at = 0
        cdef u64 part
        self.file = -1
        self.disk.release = NULL
        check(disk_folder_open(&self.disk, path, True))
        self.file = check(self.disk.open(self.disk.context, b"limit.journal", True))
        self.nbytes = nbytes
        while at < nbytes:
            part = min(nbytes - at, <u64>len(zeros))
            check(self.disk.write(self.disk.context, self.file, zeros, part, at))
            at += part
        check(self.disk.sync(self.disk.context, self.file))

    def overwrite(self, u64 write_bytes, double seconds):
        """Overwrite and sync again and again, round and round. Releases the GIL.

        Args:
            write_bytes: of each write, at most the size of the file.
            seconds: how long.

        Returns:
            Nanoseconds that each write and its sync took together.
        """
        cdef vector[u64] times
        cdef bytes data = os.urandom(write_bytes)
        cdef const u8* raw = data
        cdef u64 at = 0
        cdef u64 began, now, until
        cdef i64 bad = 0
        if not 0 < write_bytes <= self.nbytes:
            raise ValueError("write_bytes")
        with nogil:
            now = phx_span_ns()
            until = now + <u64>(seconds * 1e9)
            while now < until:
                began = now
                if at + write_bytes > self.nbytes:
                    at = 0
                bad = self.disk.write(self.disk.context, self.file, raw, write_bytes, at)
                if bad >= 0:
                    bad = self.disk.sync(self.disk.context, self.file)
                if bad < 0:
                    break
                at += write_bytes
                now = phx_span_ns()
                times.push_back(now - began)
        check(bad)
        return [times[i] for i in range(times.size())]

    def close(self):
        """Give file and folder back; the file stays. Idempotent."""
        if self.file >= 0:
            self.disk.close(self.disk.context, self.file)
            self.file = -1
        if self.disk.release != NULL:
            self.disk.release(self.disk.context)
            self.disk.release = NULL

    def __dealloc__(self):
        self.close()


def ping(int fd, double seconds):
    """One byte to an `echo` at the other end and back, again and again. Releases the GIL.

    Args:
        fd: a blocking socket.
        seconds: how long.

    Returns:
        Nanoseconds of each round trip.
    """
    cdef vector[u64] times
    cdef u8 byte = 1
    cdef iovec part
    cdef u64 began, until
    cdef i64 count = 1
    with nogil:
        part.iov_base = &byte
        part.iov_len = 1
        began = phx_span_ns()
        until = began + <u64>(seconds * 1e9)
        while began < until:
            count = phx_send_gather(fd, &part, 1)
            if count == 1:
                count = phx_receive(fd, &byte, 1)
            if count != 1:
                break
            times.push_back(phx_span_ns() - began)
            began = phx_span_ns()
    if count != 1:
        raise OSError(ECONNRESET if count == 0 else -count, "ping")
    return [times[i] for i in range(times.size())]


def echo(int fd):
    """Send every byte back, until the other end closes. Releases the GIL."""
    cdef u8 byte
    cdef iovec part
    with nogil:
        part.iov_base = &byte
        part.iov_len = 1
        while phx_receive(fd, &byte, 1) == 1:
            if phx_send_gather(fd, &part, 1) != 1:
                break


cdef class Node:
    """One node of the bare cluster. Close it: it has threads.

    Args:
        file: its journal; not used by anybody else, and closed after the node.
        me, nodes: index of this node, and how many there are (at most 8).
        groups: how many streams of values there are, over all nodes.
        value_bytes: of every value (1 .. 65536).
        inflight: 0: values are made in native code; else they come by `take`, and so many at
            most are in flight in each group.
    """

    def __cinit__(self, File file, u32 me, int nodes, u32 groups, u32 value_bytes,
                  u32 inflight=0):
        cdef u32 i
        cdef u32 cells = 1
        if not 0 < nodes <= NODES_MAX or me >= <u32>nodes or not groups:
            raise ValueError("me, nodes, groups")
        if not 0 < value_bytes <= VALUE_BYTES_MAX or inflight > 1 << 24:
            raise ValueError("value_bytes, inflight")
        if file.nbytes < 2 * ARENA_BYTES:
            raise ValueError("the journal is too small")
        self.file = file
        self.n = phx_new[Limit]()
        self.n.me = me
        self.n.others_needed = nodes // 2
        self.n.n_groups = groups
        self.n.value_bytes = value_bytes
        self.n.python = inflight > 0
        self.n.next.resize(groups)
        self.n.done.resize(groups)
        self.n.slot.resize(groups)
        memset(self.n.filler, 0x70, value_bytes)
        self.n.journal.disk = &file.disk
        self.n.journal.file = file.file
        self.n.journal.nbytes = file.nbytes
        pthread_mutex_init(&self.n.lock, NULL)
        pthread_mutex_init(&self.n.journal.lock, NULL)
        phx_cond_init(&self.n.journal.wake)
        self.n.waker.read_fd = self.n.told.read_fd = -1
        check(phx_waker_open(&self.n.waker, &self.n.fds))
        check(phx_waker_open(&self.n.told, &self.n.fds))
        if inflight:
            while cells < inflight:
                cells *= 2
            self.futures.resize(groups)
            for i in range(groups):
                memset(&self.futures[i], 0, sizeof(Futures))
                self.futures[i].mask = cells - 1

    def connect(self, int out_fd, int in_fd):
        """A neighbour: non-blocking sockets, for own frames and for its own. The caller's."""
        cdef Peer* p
        if self.running or self.n.n_peers + 1 >= NODES_MAX:
            raise ValueError("connect")
        p = &self.n.peers[self.n.n_peers]
        p.out_fd = out_fd
        p.in_fd = in_fd
        self.n.n_peers += 1

    def start(self, u64 begin_ns, u64 end_ns, list opened=None):
        """Start both threads.

        Args:
            begin_ns, end_ns: the measured time, on time.monotonic_ns(). No value is opened later.
            opened: (group, count): so many values to keep in flight, without `take`.
        """
        cdef Entry entry
        if self.running or self.n.n_peers < self.n.others_needed:
            raise ValueError("start")
        memset(&entry, 0, sizeof(Entry))
        for group, count in opened or ():
            if not 0 <= group < self.n.n_groups or self.n.python:
                raise ValueError("opened")
            entry.group = group
            entry.count = count
            self.n.waiting.push_back(entry)
        self.n.begin_ns = begin_ns
        self.n.end_ns = end_ns
        check(phx_thread_start(&self.n.journal.thread, journal_main, self.n))
        if phx_thread_start(&self.n.thread, poll_main, self.n) < 0:
            self._stop_journal()
            raise OSError("no thread")
        self.running = True

    def attach(self, loop):
        """Complete futures on that event loop, which calls `take`."""
        self.loop = loop
        self.create = loop.create_future
        self.soon = loop.call_soon
        self.flush_ = self._flush
        loop.add_reader(self.n.told.read_fd, self._told)

    def detach(self):
        """The event loop is to be closed."""
        if self.loop is not None:
            self.loop.remove_reader(self.n.told.read_fd)
            self.loop = self.create = self.soon = self.flush_ = None

    def take(self, u32 group, bytes value):
        """A future that is completed with None when the value is done.

        Raises:
            ValueError: of no such group, or of another size.
            OverflowError: as many as may be are in flight in the group.
        """
        cdef Futures* f
        cdef object future
        if group >= self.futures.size() or <u64>len(value) != self.n.value_bytes:
            raise ValueError("group, value")
        f = &self.futures[group]
        if f.last - f.first > f.mask:
            raise OverflowError("too many in flight")
        if f.cells == NULL:
            f.cells = <PyObject**>phx_malloc((f.mask + 1) * sizeof(PyObject*))
        future = PyObject_CallNoArgs(self.create)
        Py_INCREF(future)
        f.cells[f.last & f.mask] = <PyObject*>future
        f.last += 1
        if f.pending == 0:
            self.dirty.push_back(group)
            f.block = block_new(16 * self.n.value_bytes)
        f.block = block_append(f.block, <const u8*>value, self.n.value_bytes)
        f.pending += 1
        if not self.flushing:
            self.flushing = True
            self.soon(self.flush_)
        return future

    def _flush(self):
        """What one turn of the event loop has taken goes to the poll thread."""
        cdef Entry entry
        cdef Futures* f
        cdef size_t i
        self.flushing = False
        with nogil:
            memset(&entry, 0, sizeof(Entry))
            pthread_mutex_lock(&self.n.lock)
            for i in range(self.dirty.size()):
                f = &self.futures[self.dirty[i]]
                entry.group = self.dirty[i]
                entry.count = f.pending
                entry.source = f.block
                f.pending = 0
                f.block = NULL
                self.n.inbox.push_back(entry)
            phx_store(&self.n.inbox_full, 1)
            pthread_mutex_unlock(&self.n.lock)
            self.dirty.clear()
            phx_fence()
            if phx_load(&self.n.sleeping):
                phx_waker_signal(&self.n.waker)

    def _told(self):
        """Complete the futures of everything that is done."""
        cdef Futures* f
        cdef object future
        cdef size_t i
        cdef u32 k
        phx_waker_clear(&self.n.told)
        pthread_mutex_lock(&self.n.lock)
        self.taken.swap(self.n.outbox)
        pthread_mutex_unlock(&self.n.lock)
        for i in range(self.taken.size()):
            f = &self.futures[self.taken[i].group]
            for k in range(self.taken[i].count):
                future = <object>f.cells[f.first & f.mask]
                f.first += 1
                Py_DECREF(future)
                PyObject_CallMethodOneArg(future, "set_result", None)
        self.taken.clear()

    @property
    def drained(self):
        """The measured time is over, and every value that was opened here is done."""
        return phx_load(&self.n.drained) != 0

    def quiet(self):
        """Everything that was taken is done: from now on the neighbours may go."""
        phx_store(&self.n.drained, 1)

    @property
    def error(self):
        """0, or the errno that ended the node."""
        return phx_load(&self.n.error)

    def stop(self):
        """Join the threads; values in flight stay as they are. Idempotent."""
        cdef Limit* n = self.n
        if not self.running:
            return
        self.running = False
        with nogil:
            phx_store(&n.stopping, 1)
            phx_fence()
            phx_waker_signal(&n.waker)
            pthread_join(n.thread, NULL)
        self._stop_journal()

    cdef void _stop_journal(self):
        cdef Limit* n = self.n
        with nogil:
            pthread_mutex_lock(&n.journal.lock)
            n.journal.stopping = True
            pthread_cond_signal(&n.journal.wake)
            pthread_mutex_unlock(&n.journal.lock)
            pthread_join(n.journal.thread, NULL)

    def result(self):
        """What was measured; after `stop`."""
        cdef Limit* n = self.n
        cdef int i
        if self.running:
            raise ValueError("still running")
        return {
            "seconds": (n.end.at_ns - n.begin.at_ns) / 1e9,
            "values": n.end.done - n.begin.done,
            "syncs": n.end.syncs - n.begin.syncs,
            "written_bytes": n.end.written_bytes - n.begin.written_bytes,
            "cpu_ns": n.end.cpu_ns - n.begin.cpu_ns,
            "done": [n.done[i] for i in range(<int>n.n_groups)],
            "taken": [n.next[i] for i in range(<int>n.n_groups)],
            "wraps": n.journal.wraps,
            "written_total_bytes": n.journal.written_bytes,
            "histogram_ns": [
                (bucket_ns(i), n.histogram[i]) for i in range(BUCKETS) if n.histogram[i]
            ],
        }

    def __dealloc__(self):
        cdef size_t i
        if self.n == NULL:
            return
        self.stop()
        for i in range(self.futures.size()):
            while self.futures[i].first != self.futures[i].last:
                Py_DECREF(<object>self.futures[i].cells[self.futures[i].first
                                                        & self.futures[i].mask])
                self.futures[i].first += 1
            block_unref(self.futures[i].block)
            phx_free(self.futures[i].cells)
        limit_free(self.n)
