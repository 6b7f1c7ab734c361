"""One evaluation run: its definition, the answering services, and how episodes are run, retried and counted."""
