"""Tests of the file server and the disk driver."""
