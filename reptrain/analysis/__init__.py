"""From a study's tables to verdicts: pure functions of tables. No torch, no processes."""
