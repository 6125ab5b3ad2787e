"""The means by which this library is tested, for programs built on it."""
