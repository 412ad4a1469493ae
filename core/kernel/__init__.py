"""The privileged part: tasks, ports, rights, messages in flight, memory and timers.

`rights`, `ports`, `requests` and `tasks` are pure tables. `kernel` routes messages between them.
The rim, where I/O happens, is `line` (sockets to isolated tasks), `rim` (who waits for what),
`zygote` (new processes), `colocated` (servers promoted into this process) and `timers`.
"""
