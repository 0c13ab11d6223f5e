"""For the tests of dmcopy's users, too: faults on purpose, and two engines compared."""
