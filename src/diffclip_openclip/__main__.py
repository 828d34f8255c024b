"""Run ``diffclip`` as ``python -m diffclip_openclip``, where the folder of the scripts is not on the PATH."""

import sys

from diffclip_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
