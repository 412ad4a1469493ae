"""Long runs under faults: seeded, endless if need be, and strict about every loss."""
