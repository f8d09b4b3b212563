"""Runs of the command line that must withstand mistakes of users and failures of machines.

The test suite has a short form of these tests; ``make torture`` runs all of them.
"""

import os

WHOLE = os.environ.get("RAMBO_DET_TORTURE") == "whole"
