"""Tests of descriptions, of a system's life, and of the servers shipped with the kernel."""
