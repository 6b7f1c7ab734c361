"""What a run writes into its folder, and what it says about each step."""
