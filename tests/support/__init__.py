"""Fakes and fixtures that several folders of tests share."""
