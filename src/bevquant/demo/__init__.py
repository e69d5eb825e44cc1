"""The whole road on the shipped checkpoint: world, metrics, quantizer, file, engine, report."""
