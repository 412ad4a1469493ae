"""The TCP/IP server, and the TAP driver below it."""
