"""Convolutions: which formulation computes what, and each formulation."""
