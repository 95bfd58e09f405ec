"""`python -m vmoe_study`."""

import sys

from vmoe_study.cli.main import main

if __name__ == "__main__":
  sys.exit(main())
