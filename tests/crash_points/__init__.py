"""Crash-point enumeration: a file server dies at every point of a history, and loses nothing."""
