"""Vector indexes of FAISS: building, checking, searching and measuring them. Only this package imports faiss."""
