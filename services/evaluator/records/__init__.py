"""Records of an evaluation: the run, the methods that it compares, and one episode per method and question."""
