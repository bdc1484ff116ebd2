"""``phx bench``: real clusters on this machine, measured from inside, and their logs read back.

case      what one row measures; named cases and sets of them
shares    how many clients run where
values    distinct random values, made again from their numbers
machines  what the measured groups run
load      the clients, inside the measured processes
meter     what a measured process notes about itself
worker    such a process
check     is everything that was acknowledged on every node?
row       the figures of a row
limit     a bare cluster without a protocol (native); limit_door, limit_run, limit_worker
limit_of  what is possible without a protocol, and each row as a share of it
run       one row after another
table compare plot   what to do with the result
"""
