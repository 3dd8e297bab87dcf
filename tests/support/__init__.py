"""Servers, models, data and runs that tests of several folders share."""
