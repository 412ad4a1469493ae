"""Ordinary tasks shipped with the kernel, and boot, which composes kernel and tasks into a system."""
