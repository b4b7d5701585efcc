"""The equations: no views, no platform, no compiler."""
