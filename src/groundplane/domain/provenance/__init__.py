"""Where a model version comes from, signed: certificates, addenda, what must be known, and exports."""
