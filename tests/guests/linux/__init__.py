"""A stock Debian kernel as a guest of the tests."""
