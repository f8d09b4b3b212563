"""Whether the torture test is run whole (``make torture``) or in the form that the suite has."""

import os

WHOLE = os.environ.get("RAMBO_DET_TORTURE") == "whole"
