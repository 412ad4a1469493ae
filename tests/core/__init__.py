"""Tests of the kernel, of what tasks import, and of the tasks shipped with it."""
