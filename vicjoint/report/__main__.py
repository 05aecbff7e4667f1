"""python -m vicjoint.report RUN: write RUN/report.html again."""

import sys

from vicjoint.report.page import main

sys.exit(main())
