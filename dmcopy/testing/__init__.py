"""For the tests of whoever uses dmcopy, too: faults on purpose."""
