"""Ordinary tasks shipped with the kernel, and boot, which makes kernel and tasks a system."""
