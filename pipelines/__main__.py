"""`python -m pipelines COMMAND …`, which is also installed as `clippo COMMAND …`."""

import sys

from pipelines.cli import main

sys.exit(main())
