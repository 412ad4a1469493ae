"""The microkernel, its line to tasks, and the system tasks that come with it."""
