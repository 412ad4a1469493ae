"""Tests mirror the tree; `system` runs all of it as a user would, `bench` measures."""
