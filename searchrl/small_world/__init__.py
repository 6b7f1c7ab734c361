"""A synthetic world to learn in: corpora, questions, demonstrations and a reader. Standard library only."""
