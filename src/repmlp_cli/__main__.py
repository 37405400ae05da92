"""`python -m repmlp_cli`, and what torchrun starts: `torchrun --nproc_per_node 8 -m repmlp_cli train ...`."""

import sys

from . import main

sys.exit(main())
