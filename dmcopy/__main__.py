"""`python -m dmcopy`: the command line."""

import sys

from dmcopy.cli.main import main

sys.exit(main())
