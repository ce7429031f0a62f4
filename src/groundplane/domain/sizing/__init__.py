"""Will it fit, how is it spread, and how fast is it: a model's shape against cards."""
