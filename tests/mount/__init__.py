"""Tests of the host's side."""
