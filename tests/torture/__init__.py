"""What users do wrong and what machines do wrong: runs of the command line that must not suffer.

The suite has a short form of it; ``make torture`` runs it whole.
"""

import os

WHOLE = os.environ.get("RAMBO_DET_TORTURE") == "whole"
