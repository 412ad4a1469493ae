"""Tests of net_server."""
