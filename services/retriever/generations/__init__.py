"""Index generations: building, storing, checking and opening them."""
