"""What a driver says of itself, as Python's values: `Driver.status`, `group_status`."""

from phx._core.driver_state cimport DriverState, NodeStatus
from phx._core.queues cimport GroupRow

cdef dict row_of(GroupRow* row)
cdef dict status_of(DriverState* s, NodeStatus* status)
