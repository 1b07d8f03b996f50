"""Palimpsa: Bayesian metaplasticity for attention-based models."""
