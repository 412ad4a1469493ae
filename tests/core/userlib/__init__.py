"""Tests of what any task may import."""
