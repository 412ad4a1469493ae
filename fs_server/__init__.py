"""The file server, and the disk driver below it."""
