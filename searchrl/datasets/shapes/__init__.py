"""The shapes of rows that are in use: each says which rows are its own and where question and answers stand in them."""
