"""For the tests of dmcopy's users, too: faults on purpose, and two engines compared."""

import sys as _sys

# pytest marks the packages of an installed plugin for its rewriting of `assert`. Where the result
# cannot be kept, as in a guest, each run then compiles all of them anew.
for _finder in _sys.meta_path:
    getattr(_finder, "_must_rewrite", set()).discard("dmcopy")
