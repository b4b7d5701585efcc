"""How the passes over windows are run."""
