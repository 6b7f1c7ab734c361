"""Vector indexes of FAISS: building, checking, searching and measuring them. Only here may faiss be imported."""
