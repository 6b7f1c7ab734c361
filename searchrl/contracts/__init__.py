"""Generated message and service stubs, checked in; `make proto` writes them. Never edited by hand."""
