"""``python -m twofold.daemon``."""

import sys

from twofold.daemon.main import main

sys.exit(main())
