"""The program of evaluations and batches as one file that Python 3.11 runs, on nodes that have nothing of ours.

Of our modules only those that the program imports, none of anybody else's.
"""

from __future__ import annotations

import io
import zipfile
from importlib.resources import files

MODULES = (
    "__init__.py",
    "errors.py",
    "units.py",
    *("domain/__init__.py", "domain/batch.py", "domain/evaluation.py", "domain/judging.py", "domain/statistics.py"),
    *("domain/spec/__init__.py", "domain/spec/inference.py"),
    *("jobs/__init__.py", "jobs/__main__.py", "jobs/batch.py", "jobs/calls.py", "jobs/evaluate.py", "jobs/files.py"),
    *("jobs/order.py", "jobs/served.py"),
)
_MAIN = "import sys\nfrom groundplane.jobs.__main__ import main\nsys.exit(main())\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def packed_program() -> bytes:
    """A zip that Python runs; the same bytes for the same sources."""
    package, packed = files("groundplane"), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("__main__.py", _EPOCH), _MAIN)
        for name in MODULES:
            entry = zipfile.ZipInfo(f"groundplane/{name}", _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, package.joinpath(name).read_bytes())
    return packed.getvalue()
