"""One evaluation run: the answering services, and how episodes are run, retried and counted."""
