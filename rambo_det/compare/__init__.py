"""Compare losses: train each with several seeds on several data sets, and report."""
