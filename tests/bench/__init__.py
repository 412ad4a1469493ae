"""Benchmarks: programs that print tables, no tests."""
