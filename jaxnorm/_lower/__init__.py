"""How the sums and passes of a rule are run: the only place that knows a platform."""
