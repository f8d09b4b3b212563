"""Compares losses: trains each with several seeds on several datasets and writes a report."""
