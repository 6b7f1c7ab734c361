"""One evaluation run: what it is, who answers, how its episodes are driven, retried and counted."""
