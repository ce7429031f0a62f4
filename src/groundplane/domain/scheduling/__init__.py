"""Who runs next on a pool: a pure scheduler. State in, decisions out; no clock, no chance, no I/O.

`scheduler.schedule(state, now)` is the whole of it. `scheduler.Scheduler` is the same as an object that is told of
every arrival and end, for simulations; `forecast` runs it forward: when does a run start, what would start it now?
"""
