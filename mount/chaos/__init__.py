"""Chaos: servers die at random instants while a command runs, and what that cost is measured.

`killer` decides who dies when, `probes` and `echo` use the system as clients do and note how long
they had to wait, `pauses` lays those waits beside the kernel's record of who was away when,
`report` says what came of it, and `session` puts them together around a command.
"""
