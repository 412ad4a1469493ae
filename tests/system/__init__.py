"""Tests of whole systems, as a user sees them."""
