"""A hostile server, and what becomes of its ways out."""
