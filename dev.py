#!/usr/bin/env python3
"""Developer commands: `python dev.py demo | test | serve | bench | fuzz | setup | where`.

Needs nothing but Python 3.10 or newer. With no ComfyUI named (COMFYUI_DIR) and none around this pack,
it sets up a pinned one in the ignored folder `.host/`. A ComfyUI of yours is used but never changed.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - said before anything that older versions cannot read
    sys.exit("dev.py needs Python 3.10 or newer.")

from tools.commands import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
