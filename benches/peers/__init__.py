"""The parts of benches/side-by-side.py: one adapter for each system, the models, and what is made of the results."""
