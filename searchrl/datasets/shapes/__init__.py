"""The shapes of rows in common use: each recognizes its rows and finds question and answers in them."""
