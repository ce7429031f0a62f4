"""Data, not code: prices, accelerators, models, error signatures. Dated, sourced, validated."""
