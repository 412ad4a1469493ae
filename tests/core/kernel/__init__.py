"""Tests of the privileged part: its tables alone, and running systems in both placements."""
