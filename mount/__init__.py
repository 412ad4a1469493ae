"""The host's side: the FUSE front end, the `atoll` command, and the composition of a system."""
