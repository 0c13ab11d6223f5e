"""For the tests of whoever uses dmcopy, too: faults on purpose, and two engines compared."""
