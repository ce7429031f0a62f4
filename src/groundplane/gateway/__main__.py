"""`python -m groundplane.gateway`."""

import sys

from groundplane.gateway.app import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
