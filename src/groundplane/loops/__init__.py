"""What happens by itself, and when: one worker machinery, one schedule table."""
