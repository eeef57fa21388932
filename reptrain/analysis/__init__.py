"""From tables of runs to laws, claims, advice and cost. Pure functions of tables: no torch, no processes."""
