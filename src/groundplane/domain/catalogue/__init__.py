"""What is known of prices, storage and error signatures, and how it is brought up to date."""
