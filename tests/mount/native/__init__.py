"""Tests of the native front end."""
