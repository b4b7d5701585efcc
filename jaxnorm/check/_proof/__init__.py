"""Proofs of equality in exact arithmetic: two jaxprs run over residues modulo primes, beside float64 values."""
