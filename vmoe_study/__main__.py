"""`python -m vmoe_study`."""

import os
import sys

if __name__ == "__main__":
  # With `-m`, Python looks for modules in the working directory, before all
  # others. Unless it holds this package, they may be someone else's.
  home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  if not sys.flags.safe_path and sys.path[0] != home:
    del sys.path[0]

  from vmoe_study.cli.main import main

  sys.exit(main())
