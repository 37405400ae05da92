"""`python -m repmlp_cli`, also for torchrun: `torchrun --nproc_per_node 8 -m repmlp_cli train ...`."""

import sys

from . import main

sys.exit(main())
