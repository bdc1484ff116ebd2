# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, binding=False
"""The base of all loops; see measure.pxd."""


cdef void go_of(void* arg) noexcept:
    (<Loop>arg).go()


cdef class Loop:
    def __init__(self, u64 count):
        self.count = count
        self.ns = 0
        self.seen = 0

    cdef void go(self) noexcept:
        pass

    def run(self):
        """Does it all, once; nanoseconds of the measured part."""
        self.ns += phx_micro_timed(go_of, <void*>self)
        return self.ns

    def check(self):
        """Raises AssertionError if the operations were not done."""
        raise NotImplementedError


def counted():
    """Under callgrind: what was counted since the last call is written to a file of its own."""
    phx_micro_counted()
